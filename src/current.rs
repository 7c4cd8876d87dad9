//! What holds now and may be replaced while it is in use. Who works with it takes it out once and keeps that
//! to the end, so that a piece of work is done by one and the same.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// Clones share it: what one sets the others find.
pub struct Current<T>(Arc<ArcSwap<T>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Current<T> {
        Current(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load().fmt(f)
    }
}

impl<T> Current<T> {
    pub fn new(first: T) -> Current<T> {
        Current::from(Arc::new(first))
    }

    /// What holds now. Takes no lock.
    pub fn load(&self) -> Arc<T> {
        self.0.load_full()
    }

    pub fn is(&self, other: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.0.load(), other)
    }

    /// From now on this holds; what was taken out before stays what it is.
    pub fn set(&self, next: Arc<T>) {
        self.0.store(next);
    }
}

impl From<u64> for Current<u64> {
    fn from(first: u64) -> Current<u64> {
        Current::new(first)
    }
}

/// One that nobody replaces, or the first of those to come.
impl<T> From<Arc<T>> for Current<T> {
    fn from(first: Arc<T>) -> Current<T> {
        Current(Arc::new(ArcSwap::new(first)))
    }
}
