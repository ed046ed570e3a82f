//! Natural batching: the items that arrive while a flush is in flight form the next flush.
//!
//! A single item is flushed at once, so the idle latency is that of one statement. Under load the batch grows by itself up to
//! `batch_max`, so that many items share a statement, a commit or the wait for a confirm.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

/// The bounds of a batcher.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum items in one flush.
    pub batch_max: usize,
    /// Maximum flushes in flight at once.
    pub parallel_max: usize,
    /// Maximum items that wait for a flush. Beyond it `submit` waits and `try_submit` returns [`SubmitError::Full`].
    pub queue_max: usize,
    /// Minimum time after a flush of several items. Single items are flushed at once; items that arrive together share a flush.
    pub spacing: Duration,
}

/// Why an item was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// `queue_max` items are already waiting.
    #[error("too much is waiting")]
    Full,
    /// The flush did not begin in time. The item will never be flushed.
    #[error("the flush did not begin in time")]
    Late,
    /// The flush was abandoned (the process is stopping, or a flush panicked).
    #[error("the batch was abandoned")]
    Abandoned,
}

type Slot<T, R> = (T, Reply<R>);

/// Where to send a caller's result.
enum Reply<R> {
    /// The item is flushed whether or not its caller still waits.
    Always(oneshot::Sender<R>),
    /// The item is dropped if its caller stopped waiting before the flush. When the flush begins, the caller is sent the receiver
    /// of its result. This send decides the race: it fails exactly if the caller has already given up.
    IfWanted(oneshot::Sender<oneshot::Receiver<R>>),
}

impl<R> Reply<R> {
    /// Called when the flush begins. Returns the sender for the result; `None`: the caller gave up.
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

/// Collects the items of many callers and flushes them together. Each caller gets its own result.
pub struct Batcher<T, R> {
    queue: mpsc::Sender<Slot<T, R>>,
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts the collecting task. It ends when the last clone is dropped and all items are flushed. `flush` must return one
    /// result per item, in order. It runs in its own task, so a caller that is dropped cancels nothing.
    pub fn start<F, Fut>(limits: Limits, flush: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(limits.queue_max);
        tokio::spawn(collect(limits, waiting, flush));
        Self { queue }
    }

    /// Submits an item and waits for its result. If the queue is full, it first waits for space.
    pub async fn submit(&self, item: T) -> Result<R, SubmitError> {
        let (reply, result) = oneshot::channel();
        self.queue.send((item, Reply::Always(reply))).await.map_err(|_| SubmitError::Abandoned)?;
        result.await.map_err(|_| SubmitError::Abandoned)
    }

    /// Submits an item and waits for its result. If the queue is full, it fails at once.
    pub async fn try_submit(&self, item: T) -> Result<R, SubmitError> {
        self.post(item)?.await.map_err(|_| SubmitError::Abandoned)
    }

    /// Submits an item, waits up to `wait` for its flush to begin, and then waits for its result. If the queue is full, it fails
    /// at once.
    ///
    /// If the flush has not begun by then, or the caller is dropped before, the item is never flushed. Once the flush has begun,
    /// the caller waits for it, however long it takes.
    pub async fn submit_within(&self, item: T, wait: Duration) -> Result<R, SubmitError> {
        let (begun, mut beginning) = oneshot::channel();
        self.enqueue(item, Reply::IfWanted(begun))?;
        let result = match timeout(wait, &mut beginning).await {
            Ok(result) => result.map_err(|_| SubmitError::Abandoned)?,
            Err(_) => {
                beginning.close();
                // The flush may have begun just before the channel was closed.
                beginning.try_recv().map_err(|_| SubmitError::Late)?
            }
        };
        result.await.map_err(|_| SubmitError::Abandoned)
    }

    /// Submits an item without waiting; the receiver yields its result. If the queue is full, it fails at once.
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
    let flush_permits = Arc::new(Semaphore::new(limits.parallel_max));
    let mut slots = Vec::with_capacity(limits.batch_max);
    let mut next_flush = Instant::now();
    // Acquire the permit first: while all flushes are busy, items gather in the queue and form the next batch.
    while let Ok(permit) = Arc::clone(&flush_permits).acquire_owned().await {
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
                // The send fails if the caller was dropped.
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
        // The first item is flushed at once. The flush takes longer than its caller would wait for the flush to begin.
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
        // A third item is refused once one item is in flight and one is in the queue.
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
