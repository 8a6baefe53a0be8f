//! The emulated wafer: geometry, defects, blocks, rounds, routes and cost. Pure data and arithmetic; it names nothing above
//! itself.
//!
//! A matrix is cut into blocks, and block (i, j) lives on tile (j mod W, i mod H): columns of blocks along x, rows along
//! y. A program with more blocks than tiles runs in rounds. What a tile receives at a step is a [`Route`], the way there is
//! that of the [`Mesh`]; what that costs is a [`Cost`].
//!
//! Beside it stand the wafers that exist: a [`Machine`] says in how many cycles, and seconds, it would do a [`Work`].

mod all_reduce;
mod collective;
mod cost;
mod defects;
mod geometry;
mod machine;
mod mesh;
mod routes;
mod time;
mod work;

pub use all_reduce::AllReduce;
pub use collective::{Algorithm, Terms};
pub use cost::{Attention, Cost, Product, Relay, Stream};
pub use defects::{Defects, WaferError};
pub use geometry::{Grid, Port, Round, Tile, WSE2_TILE_SRAM, Wafer};
pub use machine::{MACHINES, Machine, WSE1, WSE2, WSE3};
pub use mesh::{Mesh, Ways};
pub use routes::Route;
pub use time::{Bound, Dataflow, Gemm, Step, StepTime, Time, Visit};
pub use work::Work;
