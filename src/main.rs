//! The command `gaufre`.
fn main() {}
