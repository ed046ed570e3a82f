//! Many requests written before any answer is awaited.
//!
//! lapin's futures queue their frames when first polled and then wait, first until the frames are written and then for
//! the broker. Awaiting one after the other would cost a thread switch per message; a task per message would lose the
//! order. Polling each once, in order, queues everything at once; after that, awaiting them in order wakes us rarely,
//! since answers come in order too.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Waker},
};

use futures_util::future::{MaybeDone, maybe_done};

/// Futures that were all started, in order.
pub(super) struct Pipeline<F: Future>(Vec<Pin<Box<MaybeDone<F>>>>);

impl<F: Future> Pipeline<F> {
    /// Starts each future. They wake no task until [`Pipeline::finish`] polls them.
    pub(super) fn start(futures: impl IntoIterator<Item = F>) -> Self {
        let mut unheard = Context::from_waker(Waker::noop());
        let start = |future| {
            let mut started = Box::pin(maybe_done(future));
            let _ = started.as_mut().poll(&mut unheard);
            started
        };
        Self(futures.into_iter().map(start).collect())
    }

    /// Waits for all of them; what is done stays done if this is cancelled.
    pub(super) async fn finish(&mut self) {
        for future in &mut self.0 {
            future.as_mut().await;
        }
    }

    /// The results in order, `None` for what has none yet.
    pub(super) fn results(mut self) -> Vec<Option<F::Output>> {
        self.0.iter_mut().map(|future| future.as_mut().take_output()).collect()
    }
}
