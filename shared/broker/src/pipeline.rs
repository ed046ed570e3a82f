//! Writes many requests before it waits for any answer.
//!
//! A lapin future queues its frame when it is first polled. Then it waits, first until the frame is written and then
//! for the broker. Awaiting the futures one by one would cost a thread switch per message; one task per message would
//! lose the order. So we poll each future once, in order, which queues all frames at once. After that we await them
//! in order; we are rarely woken, since the answers arrive in order too.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Waker},
};

use futures_util::future::{MaybeDone, maybe_done};

/// Futures that are all started, in order.
pub(super) struct Pipeline<F: Future>(Vec<Pin<Box<MaybeDone<F>>>>);

impl<F: Future> Pipeline<F> {
    /// Starts each future. They wake no task until [`Pipeline::finish`] polls them.
    pub(super) fn start(futures: impl IntoIterator<Item = F>) -> Self {
        let mut context = Context::from_waker(Waker::noop());
        let start = |future| {
            let mut started = Box::pin(maybe_done(future));
            let _ = started.as_mut().poll(&mut context);
            started
        };
        Self(futures.into_iter().map(start).collect())
    }

    /// Waits for all futures; results that are complete survive a cancellation.
    pub(super) async fn finish(&mut self) {
        for future in &mut self.0 {
            future.as_mut().await;
        }
    }

    /// The results in order; `None` for a future that is not complete.
    pub(super) fn results(mut self) -> Vec<Option<F::Output>> {
        self.0.iter_mut().map(|future| future.as_mut().take_output()).collect()
    }
}
