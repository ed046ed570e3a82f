//! Encryption of stored values, tokens and public keys.

pub mod p256;
pub mod seal;
pub mod token;
