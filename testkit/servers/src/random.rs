//! Random values for ports and secrets, straight from the operating system.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};

/// Random bytes, good enough for keys.
pub fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("failed to read random bytes from /dev/urandom")?;
    Ok(bytes)
}

/// A random secret of 64 hexadecimal digits (256 bits).
pub fn secret() -> Result<String> {
    Ok(bytes::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A random number from `low` up to, but not including, `high`.
pub fn port_between(low: u16, high: u16) -> Result<u16> {
    let width = high.saturating_sub(low).max(1);
    Ok(low + u16::from_le_bytes(bytes()?) % width)
}
