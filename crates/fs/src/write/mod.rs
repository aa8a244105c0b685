//! Writing one file: staging, extents, upload plans.
