//! Natural batching: whatever piled up while the last flush was under way goes into the next one.
//!
//! A lone item is flushed at once, so idle latency stays that of a single statement; under load the batch grows by
//! itself to `batch_max`, so a statement, a commit or a confirm wait is shared by many.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

/// The bounds of a batcher.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Items in one flush.
    pub batch_max: usize,
    /// Flushes under way at once.
    pub parallel_max: usize,
    /// Items waiting for a flush; beyond it `submit` waits and `try_submit` refuses.
    pub queue_max: usize,
    /// The least time after a flush of several items: single ones are flushed at once, those that come in company share one.
    pub spacing: Duration,
}

/// Why an item was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// `queue_max` items wait already.
    #[error("too much is waiting")]
    Full,
    /// Its flush did not begin in time, and never will.
    #[error("the flush did not begin in time")]
    Late,
    /// The flush was abandoned (the process is stopping, or a flush panicked).
    #[error("the batch was abandoned")]
    Abandoned,
}

type Slot<T, R> = (T, Reply<R>);

/// How a caller gets its result.
enum Reply<R> {
    /// The item is flushed whether or not its caller still waits.
    Always(oneshot::Sender<R>),
    /// The item is dropped if its caller stopped waiting before the flush. The caller learns that the flush begins by the
    /// receiver of the result, and one side or the other decides: sending it fails exactly if the caller gave up.
    IfWanted(oneshot::Sender<oneshot::Receiver<R>>),
}

impl<R> Reply<R> {
    /// Where to send the result, now that the flush begins; `None`: the caller gave up.
    fn begin(self) -> Option<oneshot::Sender<R>> {
        match self {
            Self::Always(reply) => Some(reply),
            Self::IfWanted(begun) => {
                let (reply, result) = oneshot::channel();
                begun.send(result).ok().map(|()| reply)
            }
        }
    }
}

/// Collects items of many callers and flushes them together; each caller gets its own result back.
pub struct Batcher<T, R> {
    queue: mpsc::Sender<Slot<T, R>>,
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts the collecting task; it ends when the last clone is dropped and all is flushed. `flush` must return one
    /// result per item, in order; it runs in a task of its own, so a caller that goes away cancels nothing.
    pub fn start<F, Fut>(limits: Limits, flush: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(limits.queue_max);
        tokio::spawn(collect(limits, waiting, flush));
        Self { queue }
    }

    /// Hands an item in, waiting for room, and waits for its result.
    pub async fn submit(&self, item: T) -> Result<R, SubmitError> {
        let (reply, result) = oneshot::channel();
        self.queue.send((item, Reply::Always(reply))).await.map_err(|_| SubmitError::Abandoned)?;
        result.await.map_err(|_| SubmitError::Abandoned)
    }

    /// Hands an item in unless too much is waiting, and waits for its result.
    pub async fn try_submit(&self, item: T) -> Result<R, SubmitError> {
        self.post(item)?.await.map_err(|_| SubmitError::Abandoned)
    }

    /// Hands an item in unless too much is waiting, and waits for its result; up to `wait` for the flush to begin.
    ///
    /// An item whose flush has not begun by then, or whose caller is dropped before, is never flushed. One whose flush has begun
    /// is waited for, however long it takes.
    pub async fn submit_within(&self, item: T, wait: Duration) -> Result<R, SubmitError> {
        let (begun, mut beginning) = oneshot::channel();
        self.enqueue(item, Reply::IfWanted(begun))?;
        let result = match timeout(wait, &mut beginning).await {
            Ok(result) => result.map_err(|_| SubmitError::Abandoned)?,
            Err(_) => {
                beginning.close();
                // It may have begun at the last moment.
                beginning.try_recv().map_err(|_| SubmitError::Late)?
            }
        };
        result.await.map_err(|_| SubmitError::Abandoned)
    }

    /// Hands an item in unless too much is waiting; the receiver gives its result.
    pub fn post(&self, item: T) -> Result<oneshot::Receiver<R>, SubmitError> {
        let (reply, result) = oneshot::channel();
        self.enqueue(item, Reply::Always(reply))?;
        Ok(result)
    }

    fn enqueue(&self, item: T, reply: Reply<R>) -> Result<(), SubmitError> {
        self.queue.try_send((item, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SubmitError::Full,
            mpsc::error::TrySendError::Closed(_) => SubmitError::Abandoned,
        })
    }
}

async fn collect<T, R, F, Fut>(limits: Limits, mut waiting: mpsc::Receiver<Slot<T, R>>, flush: F)
where
    T: Send + 'static,
    R: Send + 'static,
    F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<R>> + Send + 'static,
{
    let flush = Arc::new(flush);
    let flights = Arc::new(Semaphore::new(limits.parallel_max));
    let mut slots = Vec::with_capacity(limits.batch_max);
    let mut next_flush = Instant::now();
    // The permit comes first: while every flight is busy, items pile up, and that pile is the next batch.
    while let Ok(permit) = Arc::clone(&flights).acquire_owned().await {
        if waiting.recv_many(&mut slots, limits.batch_max).await == 0 {
            return;
        }
        if Instant::now() < next_flush {
            sleep_until(next_flush).await;
            while slots.len() < limits.batch_max
                && let Ok(slot) = waiting.try_recv()
            {
                slots.push(slot);
            }
        }
        let begun = slots.drain(..).filter_map(|(item, reply)| Some((item, reply.begin()?)));
        let (items, replies): (Vec<T>, Vec<_>) = begun.unzip();
        if items.is_empty() {
            continue;
        }
        if items.len() > 1 {
            next_flush = Instant::now() + limits.spacing;
        }
        let flush = Arc::clone(&flush);
        tokio::spawn(async move {
            let results = flush(items).await;
            drop(permit);
            for (reply, result) in replies.into_iter().zip(results) {
                // A caller that went away does not want its result.
                let _ = reply.send(result);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn what_piles_up_during_a_flush_goes_together_and_everybody_gets_his_own_result() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(0));
        let (seen, wait) = (Arc::clone(&sizes), Arc::clone(&gate));
        let limits = Limits { batch_max: 64, parallel_max: 1, queue_max: 1000, spacing: Duration::ZERO };
        let batcher = Batcher::start(limits, move |items: Vec<u32>| {
            seen.lock().unwrap().push(items.len());
            let wait = Arc::clone(&wait);
            async move {
                wait.acquire().await.unwrap().forget();
                items.into_iter().map(|n| n * 2).collect()
            }
        });
        let calls: Vec<_> = (0..50u32)
            .map(|n| {
                tokio::spawn({
                    let batcher = batcher.clone();
                    async move { batcher.submit(n).await }
                })
            })
            .collect();
        gate.add_permits(50);
        for (n, call) in (0..50u32).zip(calls) {
            assert_eq!(call.await.unwrap(), Ok(n * 2));
        }
        let sizes = sizes.lock().unwrap().clone();
        assert_eq!(sizes.iter().sum::<usize>(), 50);
        assert!(sizes.len() < 50, "{sizes:?}");
    }

    #[tokio::test]
    async fn an_item_nobody_waits_for_is_not_flushed_and_one_whose_flush_began_is_waited_for() {
        let flushed = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(0));
        let (seen, wait) = (Arc::clone(&flushed), Arc::clone(&gate));
        let limits = Limits { batch_max: 8, parallel_max: 1, queue_max: 8, spacing: Duration::ZERO };
        let batcher = Batcher::start(limits, move |items: Vec<u32>| {
            seen.lock().unwrap().extend(items.clone());
            let wait = Arc::clone(&wait);
            async move {
                wait.acquire().await.unwrap().forget();
                items
            }
        });
        let within = |n: u32, ms: u64| {
            let batcher = batcher.clone();
            tokio::spawn(async move { batcher.submit_within(n, Duration::from_millis(ms)).await })
        };
        // The first is flushed at once and takes longer than its caller would wait for the beginning.
        let first = within(1, 50);
        while flushed.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let gone = within(2, 60_000);
        assert_eq!(within(3, 50).await.unwrap(), Err(SubmitError::Late));
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        let last = within(4, 60_000);
        gate.add_permits(8);
        assert_eq!((first.await.unwrap(), last.await.unwrap()), (Ok(1), Ok(4)));
        assert_eq!(*flushed.lock().unwrap(), [1, 4]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let limits = Limits { batch_max: 1, parallel_max: 1, queue_max: 1, spacing: Duration::ZERO };
        let batcher: Batcher<u32, u32> = Batcher::start(limits, |_| std::future::pending());
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.submit(1).await }
        });
        // One item is in flight and one in the queue once a third is refused.
        let mut refused = None;
        let mut waiting = Vec::new();
        for n in 2..10 {
            let batcher = batcher.clone();
            let mut call = Box::pin(async move { batcher.try_submit(n).await });
            tokio::select! {
                biased;
                result = &mut call => { refused = Some(result); break }
                () = tokio::task::yield_now() => waiting.push(call),
            }
        }
        assert_eq!(refused, Some(Err(SubmitError::Full)));
        first.abort();
    }
}
