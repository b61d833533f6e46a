//! What the kernel does for us, one module per interface; nothing here decides anything.

pub mod socket;
