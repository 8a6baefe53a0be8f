//! Which block a tile receives at a step, and so along which side of the wafer it comes. It must never know what is in it.

/// Which block of an operand the tile of output block (i, j) receives at step s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Block (i, s), from its owner along the row to every tile of it.
    BroadcastRow,
    /// Block (s, j), from its owner along the column to every tile of it.
    BroadcastColumn,
}

impl Route {
    /// The block of the operand that output block (i, j) receives at a step.
    pub fn block(self, i: u32, j: u32, step: u32) -> (u32, u32) {
        match self {
            Route::BroadcastRow => (i, step),
            Route::BroadcastColumn => (step, j),
        }
    }
}
