//! The seam between a server and the way it is run: as a process of this machine or in a container.

use std::fmt::Debug;

use anyhow::Result;
use nix::sys::signal::Signal;

/// Runs one server. Implemented by [`Native`](super::native::Native) and
/// [`Container`](super::container::Container).
pub(super) trait Host: Debug + Send + Sync {
    /// Ends whatever an earlier run left on the same data, politely first.
    fn end_leftovers(&self) -> Result<()>;
    /// Deletes the data. The server does not run.
    fn erase(&self) -> Result<()>;
    /// Starts the server; whether it answers is not waited for.
    fn launch(&self) -> Result<()>;
    /// Whether its main process exists.
    fn is_running(&self) -> bool;
    /// The id of its main process.
    fn pid(&self) -> Option<u32>;
    /// Sends a signal to the main process.
    fn signal(&self, signal: Signal);
    /// Sends a signal to the main process and all its helpers.
    fn signal_all(&self, signal: Signal);
    /// Kills the main process and all its helpers, and waits until they are gone.
    fn kill_all(&self) -> Result<()>;
    /// Gives the running server out of hand: dropping the host no longer ends it.
    fn detach(&self);
    /// The last output of the server, for an error message.
    fn last_words(&self) -> String;
}
