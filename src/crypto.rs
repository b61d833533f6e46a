//! The cryptographic library, with one interface: aws-lc where its AES-GCM takes a third less time than
//! ring's, ring elsewhere, as it is smaller.

#[cfg(target_arch = "x86_64")]
pub use aws_lc_rs::{aead, digest, hkdf, hmac};
#[cfg(not(target_arch = "x86_64"))]
pub use ring::{aead, digest, hkdf, hmac};
