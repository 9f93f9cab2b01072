//! A cache bounded by bytes that loads each value once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::model::locked;
use tokio::sync::OnceCell;
use tokio::task::JoinError;

/// An error of a load, for which several callers may wait.
pub(super) trait LoadError: From<JoinError> + Send + Sync + 'static {
    /// Returns the error for a caller that waited for the load of another one. It may be of another kind, so that what
    /// is to be noted once for each load is not noted for each caller.
    fn for_waiter(&self) -> Self;
}

/// Values by key. Each is loaded once, however many callers ask for it at the same time. The least recently used ones
/// are evicted when their total size exceeds the limit. Values still in use elsewhere are evicted last, because that
/// frees nothing.
pub(super) struct Cache<K, V: ?Sized, E> {
    inner: Arc<Mutex<Inner<K, V, E>>>,
}

struct Inner<K, V: ?Sized, E> {
    limit: u64,
    clock: u64,
    entries: HashMap<K, Entry<V, E>>,
}

struct Entry<V: ?Sized, E> {
    cell: Arc<Cell<V, E>>,
    /// Size of the value; 0 until it is loaded.
    bytes: u64,
    used: u64,
}

/// A load in progress or done, shared by all that wait for it.
struct Cell<V: ?Sized, E> {
    value: OnceCell<Arc<V>>,
    failed: OnceLock<E>,
}

impl<K, V: ?Sized, E> Clone for Cache<K, V, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K, V, E> Cache<K, V, E>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Send + Sync + ?Sized + 'static,
    E: LoadError,
{
    pub(super) fn new(limit: u64) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { limit, clock: 0, entries: HashMap::new() })) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V, E>> {
        locked(&self.inner)
    }

    /// Returns the value, loading it by `load` if needed, which also returns its size in bytes.
    ///
    /// The load continues when the caller stops waiting, so that the next caller finds it done. A failure is given to
    /// all callers that wait for the load, so that they do not each start a load of their own in turn, and is not
    /// remembered.
    pub(super) async fn get_or_load<F>(&self, key: K, load: F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<(Arc<V>, u64), E>> + Send + 'static,
    {
        let cell = self.lock().cell(&key);
        if let Some(value) = cell.value.get() {
            return Ok(value.clone());
        }
        let cache = self.clone();
        tokio::spawn(async move {
            let mut bytes = None;
            let load = async {
                if let Some(failed) = cell.failed.get() {
                    return Err(failed.for_waiter());
                }
                match load.await {
                    Ok((value, size)) => {
                        bytes = Some(size);
                        Ok(value)
                    }
                    Err(e) => {
                        let _ = cell.failed.set(e.for_waiter());
                        Err(e)
                    }
                }
            };
            let value = cell.value.get_or_try_init(|| load).await.cloned();
            match (&value, bytes) {
                (Ok(_), Some(bytes)) => {
                    let evicted = cache.lock().loaded(&key, &cell, bytes);
                    if !evicted.is_empty() {
                        // The last reference may be dropped here, which on a GPU waits for its work to end.
                        tokio::task::spawn_blocking(move || drop(evicted));
                    }
                }
                (Ok(_), None) => {}
                (Err(_), _) => cache.lock().forget_failed(&key, &cell),
            }
            value
        })
        .await?
    }

    /// Whether the value is loaded. Does not count as a use.
    pub(super) fn has(&self, key: &K) -> bool {
        self.lock().entries.get(key).is_some_and(|e| e.cell.value.initialized())
    }

    /// Returns the total size of the loaded values, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes()
    }

    /// Whether this is the value that is loaded.
    pub(super) fn holds(&self, key: &K, value: &Arc<V>) -> bool {
        self.lock().holds(key, value)
    }

    /// Evicts this value, if it is (still) there. Those who use it keep it until they are done.
    pub(super) async fn forget(&self, key: &K, value: &Arc<V>) {
        let evicted = self.lock().remove(key, value);
        // On a blocking thread, as below.
        let _ = tokio::task::spawn_blocking(move || drop(evicted)).await;
    }

    /// Evicts all values that are not in use elsewhere. Returns whether there were any.
    pub(super) async fn forget_idle(&self) -> bool {
        // Dropped without the lock and on a blocking thread: that may take as long as the device works.
        let idle: Vec<_> = self.lock().entries.extract_if(|_, e| e.is_idle()).collect();
        let any = !idle.is_empty();
        // It is evicted even if dropping it panics.
        let _ = tokio::task::spawn_blocking(move || drop(idle)).await;
        any
    }
}

impl<V: ?Sized, E> Entry<V, E> {
    /// Whether the value is loaded and referenced by the cache only.
    fn is_idle(&self) -> bool {
        self.cell.value.get().is_some_and(|v| Arc::strong_count(v) == 1)
    }
}

impl<K: Eq + Hash + Clone, V: ?Sized, E> Inner<K, V, E> {
    fn holds(&self, key: &K, value: &Arc<V>) -> bool {
        let loaded = self.entries.get(key).and_then(|e| e.cell.value.get());
        loaded.is_some_and(|loaded| Arc::ptr_eq(loaded, value))
    }

    fn remove(&mut self, key: &K, value: &Arc<V>) -> Option<Entry<V, E>> {
        if self.holds(key, value) { self.entries.remove(key) } else { None }
    }

    fn cell(&mut self, key: &K) -> Arc<Cell<V, E>> {
        self.clock += 1;
        let used = self.clock;
        let cell = || Arc::new(Cell { value: OnceCell::new(), failed: OnceLock::new() });
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry { cell: cell(), bytes: 0, used });
        entry.used = used;
        entry.cell.clone()
    }

    fn bytes(&self) -> u64 {
        self.entries.values().map(|e| e.bytes).sum()
    }

    /// Records the size of a loaded value. Returns the entries evicted for it.
    fn loaded(&mut self, key: &K, cell: &Arc<Cell<V, E>>, bytes: u64) -> Vec<Entry<V, E>> {
        let mut evicted = Vec::new();
        if let Some(entry) = self.entries.get_mut(key)
            && Arc::ptr_eq(&entry.cell, cell)
        {
            entry.bytes = bytes;
        }
        while self.bytes() > self.limit {
            let oldest = self
                .entries
                .iter()
                .filter(|(k, e)| *k != key && e.cell.value.initialized())
                .min_by_key(|(_, e)| (!e.is_idle(), e.used))
                .map(|(k, _)| k.clone());
            // A single value larger than the limit stays: it is needed now.
            let Some(oldest) = oldest else { break };
            evicted.extend(self.entries.remove(&oldest));
        }
        evicted
    }

    fn forget_failed(&mut self, key: &K, cell: &Arc<Cell<V, E>>) {
        // Others that wait for this cell hold it and get the error. The next caller starts again.
        if self.entries.get(key).is_some_and(|e| Arc::ptr_eq(&e.cell, cell)) {
            self.entries.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug)]
    struct Failed;
    impl From<JoinError> for Failed {
        fn from(_: JoinError) -> Self {
            Self
        }
    }
    impl LoadError for Failed {
        fn for_waiter(&self) -> Self {
            Self
        }
    }
    type Cache<K, V> = super::Cache<K, V, Failed>;

    async fn get(cache: &Cache<u32, u32>, key: u32, bytes: u64) -> Arc<u32> {
        cache.get_or_load(key, async move { Ok::<_, Failed>((Arc::new(key), bytes)) }).await.unwrap()
    }

    fn keys(cache: &Cache<u32, u32>) -> Vec<u32> {
        let mut keys: Vec<_> = cache.lock().entries.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    #[tokio::test]
    async fn many_who_ask_at_once_load_once() {
        let cache = Cache::<u32, u32>::new(100);
        let loads = Arc::new(AtomicU32::new(0));
        let asks = (0..20).map(|_| {
            let (cache, loads) = (cache.clone(), loads.clone());
            async move {
                let load = async move {
                    tokio::task::yield_now().await;
                    loads.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Failed>((Arc::new(7), 10))
                };
                *cache.get_or_load(1, load).await.unwrap()
            }
        });
        assert_eq!(futures::future::join_all(asks).await, vec![7; 20]);
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert_eq!(cache.bytes(), 10);
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_first_and_one_in_use_last() {
        let cache = Cache::<u32, u32>::new(30);
        let held = get(&cache, 1, 10).await;
        get(&cache, 2, 10).await;
        get(&cache, 3, 10).await;
        get(&cache, 2, 10).await;
        get(&cache, 4, 10).await;
        assert_eq!(keys(&cache), [1, 2, 4], "3 was idle and the least recently used; 1 is held");
        drop(held);
        get(&cache, 5, 10).await;
        assert_eq!(keys(&cache), [2, 4, 5]);
        get(&cache, 6, 1000).await;
        assert_eq!(keys(&cache), [6], "a value beyond the limit is kept, alone");
        assert!(cache.forget_idle().await);
        assert_eq!(cache.bytes(), 0);
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let cache = Cache::<u32, u32>::new(30);
        assert!(cache.get_or_load(1, async { Err::<(Arc<u32>, u64), _>(Failed) }).await.is_err());
        assert_eq!(keys(&cache), [] as [u32; 0]);
        assert_eq!(*get(&cache, 1, 1).await, 1);
    }

    #[tokio::test]
    async fn all_who_wait_for_a_load_that_fails_get_the_error_and_the_next_one_begins_anew() {
        let cache = Cache::<u32, u32>::new(30);
        let loads = Arc::new(AtomicU32::new(0));
        let asks = (0..20).map(|_| {
            let (cache, loads) = (cache.clone(), loads.clone());
            async move {
                let load = async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    Err::<(Arc<u32>, u64), _>(Failed)
                };
                cache.get_or_load(1, load).await.is_err()
            }
        });
        assert_eq!(futures::future::join_all(asks).await, vec![true; 20]);
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert_eq!(*get(&cache, 1, 1).await, 1);
    }

    #[tokio::test]
    async fn a_caller_who_leaves_does_not_stop_the_load() {
        let cache = Cache::<u32, u32>::new(30);
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let load = async move {
            let _ = gone.await;
            Ok::<_, Failed>((Arc::new(9), 1))
        };
        let waiting = cache.get_or_load(1, load);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), waiting).await.is_err());
        go.send(()).unwrap();
        let again = cache.get_or_load(1, async { Err::<(Arc<u32>, u64), _>(Failed) }).await.unwrap();
        assert_eq!(*again, 9);
    }
}
