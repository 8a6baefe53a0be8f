//! The plan of a run as data, and its two faces: a text for a terminal and a page for a browser. Whoever plans fills it in;
//! JSON is the structure as it stands. It must never know how a number was come by.

mod map;
mod page;
mod text;

pub use map::{Map, Played};

use serde::Serialize;

/// A plan: a training step of a model on a wafer and on this machine, before it is run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Name of the model.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Ids that it was counted with, where the model takes the vocabulary of its data.
    pub open_vocabulary: Option<usize>,
    /// What is asked for, by flag and value.
    pub asked: Vec<(&'static str, String)>,
    /// Tokens of a micro-batch.
    pub micro_tokens: u64,
    /// Micro-batches of a step.
    pub micro_batches: u64,
    /// Tokens of a sequence.
    pub seq_len: u64,
    /// The wafer.
    pub wafer: Wafer,
    /// The device of this machine, in one line.
    pub device: String,
    /// Why a run here would be refused, where it would.
    pub refused: Option<String>,
    /// Bytes of each role that is kept of a parameter.
    pub roles: Vec<Role>,
    /// The tensors, alike ones of all layers together.
    pub tensors: Vec<Tensor>,
    /// Memory, by place.
    pub memory: Vec<Memory>,
    /// The largest micro-batches.
    pub largest: Largest,
    /// What each program takes of a tile.
    pub sram: Vec<Sram>,
    /// What each program does in a step.
    pub programs: Vec<Program>,
    /// What streams.
    pub stream: Stream,
    /// A step on the wafer.
    pub on_wafer: OnWafer,
    /// A step on this machine.
    pub here: Here,
    /// Which tiles have how much to do.
    pub map: Map,
}

/// A wafer.
#[derive(Clone, Debug, Serialize)]
pub struct Wafer {
    /// Its name, or that of the machine that it is a part of.
    pub name: String,
    /// Tiles from left to right.
    pub width: u64,
    /// Tiles from top to bottom.
    pub height: u64,
    /// Tiles from left to right and from top to bottom among which they are, with those that are dead or left out.
    pub placed_on: (u64, u64),
    /// Dead ones of these.
    pub dead: u64,
    /// SRAM of a tile in bytes.
    pub tile_sram_bytes: u64,
    /// Cycles a second.
    pub clock_hz: f64,
    /// Bytes a second that enter the wafer, and as many that leave it.
    pub link_bytes_per_second: f64,
}

/// What is kept of all parameters in one role.
#[derive(Clone, Debug, Serialize)]
pub struct Role {
    /// Its name.
    pub name: &'static str,
    /// How values rest.
    pub format: String,
    /// Bytes where they rest.
    pub bytes: u64,
}

/// A tensor, or alike ones of several layers.
#[derive(Clone, Debug, Serialize)]
pub struct Tensor {
    /// Its name, with a star for the layer.
    pub name: String,
    /// How many there are.
    pub count: u64,
    /// Rows and columns.
    pub shape: (u64, u64),
    /// Parameters of all of them.
    pub parameters: u64,
    /// Bytes of all of them, weights alone, where they rest.
    pub weight_bytes: u64,
    /// Panels of each: whole rows, which pass one after the other.
    pub panels: u64,
    /// Rows and columns of a block.
    pub block: (u64, u64),
    /// Blocks of a panel along x (outputs) and along y (inputs).
    pub blocks: (u64, u64),
    /// Tiles along x and along y that have one.
    pub tiles: (u64, u64),
    /// Most blocks on a tile, of all panels of one tensor.
    pub on_a_tile: u64,
}

/// A memory and what is needed of it.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Which.
    pub place: &'static str,
    /// Bytes needed.
    pub needed: u64,
    /// Bytes there are, or are allowed, where that is known.
    pub available: Option<u64>,
}

/// The largest micro-batches, in sequences.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Largest {
    /// Here, as far as memory is known: that of an adapter is not, unless it is bounded.
    pub here: u64,
    /// In the SRAM of the wafer.
    pub wafer: u64,
    /// Bytes of activations of a token there.
    pub token_bytes: u64,
    /// Bytes of a tile that are left to programs.
    pub reserved: u64,
}

/// What a program takes of a tile's SRAM.
#[derive(Clone, Debug, Serialize)]
pub struct Sram {
    /// Name of the program.
    pub program: &'static str,
    /// Name of the variant.
    pub variant: &'static str,
    /// Variables in workgroup memory, and their bytes.
    pub variables: Vec<(String, u32)>,
    /// Bytes of accumulators.
    pub accumulators: u32,
    /// Bytes of the state saved between supersteps.
    pub state: u32,
    /// All together: the high-water mark.
    pub total: u32,
    /// Share of the tile.
    pub share: f64,
}

impl Sram {
    /// Bytes of all variables in workgroup memory.
    pub fn workgroup(&self) -> u32 {
        self.variables.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a program does in a step.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Runs.
    pub runs: u64,
    /// Launches, as the step is scheduled here.
    pub launches: u64,
    /// Launches in supersteps on the wafer.
    pub supersteps: u64,
    /// Blocks that travel there.
    pub messages: u64,
    /// Bytes of these blocks.
    pub bytes: u64,
    /// Multiply-adds of its products.
    pub macs: u64,
}

/// What passes on the way to the wafer and back, and between memory and disk here.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stream {
    /// Bytes of all weights, which stream through once in a forward pass and once in a backward pass.
    pub pass_bytes: u64,
    /// Seconds that a pass takes the link of the wafer.
    pub pass_seconds: f64,
    /// Bytes between memory and disk here, in a step.
    pub disk_bytes: u64,
}

/// A visit of a step in one direction, with the seconds of its parts on the wafer.
#[derive(Clone, Debug, Serialize)]
pub struct Visit {
    /// Its name.
    pub name: String,
    /// Whether it is on the way back.
    pub backward: bool,
    /// Seconds of the link.
    pub link_seconds: f64,
    /// Seconds of the wafer.
    pub wafer_seconds: f64,
}

/// A step on the wafer, predicted.
#[derive(Clone, Debug, Serialize)]
pub struct OnWafer {
    /// Seconds in which the busiest tile multiplies and adds.
    pub compute_seconds: f64,
    /// Seconds of the fabric.
    pub fabric_seconds: f64,
    /// Seconds of the link that leaves the wafer.
    pub link_seconds: f64,
    /// Seconds in all, overlapped.
    pub total_seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// What takes longest.
    pub bound: &'static str,
    /// The visits of a micro-batch, in order.
    pub visits: Vec<Visit>,
}

/// A step on this machine, predicted of what was measured of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Here {
    /// Operations a second in a product, measured.
    pub product_flops: f64,
    /// Seconds of computing.
    pub compute_seconds: f64,
    /// Seconds of reading and writing.
    pub stream_seconds: f64,
    /// Seconds of moving blocks between tiles.
    pub exchange_seconds: f64,
    /// Seconds in all.
    pub total_seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// What takes longest.
    pub bound: &'static str,
}

/// What a prediction for a wafer leaves out, for whoever reads one.
const IDEAL: &str = "an ideal: runs that were published took longer, as `cargo bench --bench wafer` shows";

impl Plan {
    /// Tokens of a step.
    pub fn step_tokens(&self) -> u64 {
        self.micro_tokens * self.micro_batches
    }

    /// Whether a micro-batch has room in the SRAM of the wafer.
    pub fn fits_wafer(&self) -> bool {
        self.largest.wafer * self.seq_len >= self.micro_tokens
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        text::of(self)
    }

    /// For a browser: one page that needs nothing else.
    pub fn html(&self) -> String {
        page::of(self)
    }
}
