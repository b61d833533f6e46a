//! UCI text to sections, with the exact semantics of libuci.
