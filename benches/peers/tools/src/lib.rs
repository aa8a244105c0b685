//! What the programs of the benchmark share: [`call`], the requests by their kind.

pub mod call;
