//! Reads inboxes for open sockets. Reads that arrive while a statement runs share the next one.

use std::time::Duration;

use records::{
    Records,
    inbox::{Follower, InboxItem, Reader},
};
use runtime::batch::{Batcher, Limits};
use store::Store;

/// Items sent to a client whose position is unknown.
pub const NEWEST: i64 = 100;
/// Items of one page for one socket.
pub const PAGE: i64 = 32;
/// One statement reads for up to 64 sockets; a second one hides the round trip of the first. Each open socket has at most
/// one read in the queue, and waits if the queue is full.
const LIMITS: Limits = Limits { batch_max: 64, parallel_max: 2, queue_max: 4096, spacing: Duration::ZERO };

/// Reads inboxes in batches. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    starts: Batcher<Follower, Option<i64>>,
    pages: Batcher<Reader, Option<Vec<InboxItem>>>,
}

impl Feed {
    /// Reads from `store`, on the caller's runtime.
    pub fn start(store: Store) -> Self {
        let beginning = store.clone();
        Self {
            starts: Batcher::start(LIMITS, move |followers| starts(beginning.clone(), followers)),
            pages: Batcher::start(LIMITS, move |readers| pages(store.clone(), readers)),
        }
    }

    /// The sequence number after which a client starts; `None` if the database did not answer.
    pub async fn start_after(&self, follower: Follower) -> Option<i64> {
        self.starts.submit(follower).await.ok().flatten()
    }

    /// The next page for a reader; `None` if the database did not answer.
    pub async fn page(&self, reader: Reader) -> Option<Vec<InboxItem>> {
        self.pages.submit(reader).await.ok().flatten()
    }
}

async fn starts(store: Store, followers: Vec<Follower>) -> Vec<Option<i64>> {
    let count = followers.len();
    match store.inbox().starts(&followers, NEWEST).await {
        Ok(starts) => starts.into_iter().map(Some).collect(),
        Err(error) => {
            tracing::warn!(%error, count, "inboxes could not be opened for sockets");
            vec![None; count]
        }
    }
}

async fn pages(store: Store, readers: Vec<Reader>) -> Vec<Option<Vec<InboxItem>>> {
    let count = readers.len();
    match store.inbox().after(&readers, PAGE).await {
        Ok(pages) => pages.into_iter().map(Some).collect(),
        Err(error) => {
            tracing::warn!(%error, count, "inboxes could not be read for sockets");
            vec![None; count]
        }
    }
}
