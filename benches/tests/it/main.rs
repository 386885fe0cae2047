//! Tests of the house as a whole. They are here because this crate is above all others.

mod house;
mod load;
mod replace;
mod snapshot;
