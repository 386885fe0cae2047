//! State that most replicas do without most of the time: it takes memory only while it differs from its empty value.
//!
//! Invariant: a [`Spare`] behaves like the value that it stands for. Reading one never allocates; writing to it does, so
//! hot paths look before they write. Must not know: what is kept.

use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};

/// A value with an empty form that can be lent out without being anywhere in memory.
pub trait Emptied: Default + Sized + 'static {
    /// The empty value; equal to the default one.
    const EMPTY: &'static Self;

    /// Whether this value is as good as the empty one.
    fn is_emptied(&self) -> bool;
}

/// A value of `T`, in memory only once it was written to.
pub struct Spare<T: Emptied>(Option<Box<T>>);

impl<T: Emptied> Spare<T> {
    /// The value, if it was written to since it was last let go of.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// Lets go of the memory if the value is empty.
    pub fn shed(&mut self) {
        if self.0.as_deref().is_some_and(T::is_emptied) {
            self.0 = None;
        }
    }

    /// Takes the value and leaves the empty one.
    pub fn take(&mut self) -> T {
        self.0.take().map_or_else(T::default, |held| *held)
    }
}

impl<T: Emptied> Default for Spare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Emptied> From<T> for Spare<T> {
    fn from(value: T) -> Self {
        if value.is_emptied() { Self(None) } else { Self(Some(Box::new(value))) }
    }
}

impl<T: Emptied> Deref for Spare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::EMPTY)
    }
}

impl<T: Emptied> DerefMut for Spare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: Emptied + Clone> Clone for Spare<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Emptied + std::fmt::Debug> std::fmt::Debug for Spare<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

/// Whether the memory is there makes no difference.
impl<T: Emptied + PartialEq> PartialEq for Spare<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Emptied + Eq> Eq for Spare<T> {}

impl<T: Emptied + Hash> Hash for Spare<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Numbers(Vec<u64>);

    impl Numbers {
        fn is_empty(&self) -> bool {
            self.0.is_empty()
        }

        fn push(&mut self, number: u64) {
            self.0.push(number);
        }
    }

    impl Emptied for Numbers {
        const EMPTY: &'static Self = &Self(Vec::new());

        fn is_emptied(&self) -> bool {
            self.0.is_empty()
        }
    }

    #[test]
    fn a_spare_takes_memory_only_while_it_differs_from_empty() {
        let mut spare = Spare::<Numbers>::default();
        assert!(Numbers::is_empty(&spare) && spare.get_mut().is_none(), "reading allocates nothing");
        Numbers::push(&mut spare, 7);
        assert_eq!(*spare, Numbers(vec![7]));
        spare.shed();
        assert!(spare.get_mut().is_some(), "what is not empty is kept");
        let written = spare.clone();
        spare.get_mut().expect("kept").0.clear();
        assert_ne!(spare, written);
        assert_eq!(spare, Spare::default());
        spare.shed();
        assert!(spare.get_mut().is_none());
    }

    #[test]
    fn taking_a_spare_leaves_it_empty() {
        let mut spare = Spare::from(Numbers(vec![1]));
        assert_eq!(spare.take(), Numbers(vec![1]));
        assert_eq!(spare.take(), Numbers::default());
    }
}
