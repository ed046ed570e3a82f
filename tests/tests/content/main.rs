//! Templates and stored contents.

mod content;
mod templates;
