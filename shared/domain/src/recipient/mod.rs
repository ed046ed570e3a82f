//! The recipient: addresses, the person behind them, and when and whether that person may be disturbed.

pub mod address;
pub mod person;
pub mod phone;
pub mod preference;
pub mod quiet;
pub mod send_window;
pub mod suppression;
pub mod unsubscribe;
