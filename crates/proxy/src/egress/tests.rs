//! Networks whose outside is made up: which names there are, which addresses, and what listens there.

mod attacks;
mod egress;
mod intercepted;
mod world;
