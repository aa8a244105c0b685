//! Ranges of object versions kept on the local disk.
