//! What a store keeps of a tensor: a weight, a gradient, what an optimiser remembers of it. The one declaration from which
//! cells, slots, files and checkpoints derive. It must never know an optimiser's formula.

use super::format::Format;

/// What a cell is to its tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The parameter, as the passes of the model read it.
    Weight,
    /// Its gradient of this step.
    Gradient,
    /// First state of the optimiser: AdamW's first moment, the momentum of SGD, Adafactor's second moment of rows.
    State1,
    /// Second state of the optimiser: AdamW's second moment, Adafactor's of columns, or of all elements of a vector.
    State2,
    /// The parameter at full precision, where the one that is read is rounded.
    Master,
}

/// Number of roles.
pub const ROLES: usize = 5;

/// Every role, in order.
pub const ALL: [Role; ROLES] = [Role::Weight, Role::Gradient, Role::State1, Role::State2, Role::Master];

impl Role {
    /// What stands before a tensor's name in files.
    pub fn prefix(self) -> &'static str {
        match self {
            Role::Weight => "",
            Role::Gradient => "gradient.",
            Role::State1 => "state1.",
            Role::State2 => "state2.",
            Role::Master => "master.",
        }
    }

    /// Whether an update writes it, so that it must outlast the step.
    pub fn lasts(self) -> bool {
        self != Role::Gradient
    }
}

/// How much an optimiser keeps of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Nothing.
    None,
    /// A value for each element.
    Whole,
    /// A value for each row.
    Rows,
    /// A value for each column.
    Columns,
}

/// One state of an optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// What is kept of a tensor of two dimensions.
    pub matrix: Span,
    /// What is kept of a vector.
    pub vector: Span,
    /// How its values rest off the device.
    pub format: Format,
}

impl State {
    /// No such state.
    pub const NONE: State = State { matrix: Span::None, vector: Span::None, format: Format::F32 };

    /// A value for each element of every tensor.
    pub const fn whole(format: Format) -> State {
        State { matrix: Span::Whole, vector: Span::Whole, format }
    }
}

/// What a store keeps beside weights when a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Training {
    /// The states of the optimiser.
    pub states: [State; 2],
    /// Whether parameters are also kept at full precision.
    pub master: bool,
}

/// The values of one tensor in one role: a matrix of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// How its values rest off the device.
    pub format: Format,
    /// Whether it is cut as the tensor is: then its panels and the tensor's go together.
    pub cut: bool,
}

/// What is kept of a tensor of `rows x cols` in a role; `None`: nothing.
pub fn array(
    role: Role,
    rows: usize,
    cols: usize,
    vector: bool,
    weights: Format,
    training: Option<Training>,
) -> Option<Array> {
    let whole = |format| Some(Array { rows, cols, format, cut: true });
    let state = |state: State| {
        let line = |cols| Some(Array { rows: 1, cols, format: state.format, cut: false });
        match if vector { state.vector } else { state.matrix } {
            Span::None => None,
            Span::Whole => whole(state.format),
            Span::Rows => line(rows),
            Span::Columns => line(cols),
        }
    };
    match (role, training) {
        (Role::Weight, _) => whole(weights),
        (_, None) => None,
        (Role::Gradient, _) => whole(Format::F32),
        (Role::State1, Some(t)) => state(t.states[0]),
        (Role::State2, Some(t)) => state(t.states[1]),
        (Role::Master, Some(t)) => t.master.then_some(Array { rows, cols, format: Format::F32, cut: true }),
    }
}
