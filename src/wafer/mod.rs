//! The emulated wafer: geometry, blocks, rounds, routes and cost. Pure data and arithmetic; it names nothing above itself.
//!
//! A matrix is cut into blocks, and block (i, j) lives on tile (j mod W, i mod H): columns of blocks along x, rows along
//! y. A program with more blocks than tiles runs in rounds. What a tile receives at a step, and over which links of the
//! mesh, is a [`Route`]; what that costs is a [`Cost`].

mod all_reduce;
mod cost;
mod geometry;
mod routes;

pub use all_reduce::AllReduce;
pub use cost::{Attention, Cost, Product};
pub use geometry::{Link, Round, Tile, WSE2_TILE_SRAM, Wafer};
pub use routes::Route;
