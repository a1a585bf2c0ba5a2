//! The lazo command line.
fn main() {}
