//! Names by the million: pieces of texts that many names share. Pure.
//!
//! A run of ImageNet has 1.28 million keys and as many identities. A `String` takes 24 bytes and an allocation of its own, as do
//! `SmolStr` and `CompactString` for names of more than 24 bytes; a piece of a page of names takes 16 bytes. `arcstr::Substr` (1.2.0)
//! has 16 bytes too, but its `substr` lets a piece reach past its end.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A piece of a text. The whole lives as long as any piece of it.
#[derive(Clone)]
pub struct SharedStr {
    /// A thin pointer: half of a wide one.
    whole: Arc<Box<str>>,
    start: u32,
    end: u32,
}

impl SharedStr {
    /// Texts that share one whole, of less than 4 GiB: for those that are made and dropped together.
    pub fn many<S: AsRef<str>>(parts: impl IntoIterator<Item = S>) -> Vec<SharedStr> {
        let parts: Vec<S> = parts.into_iter().collect();
        // Exactly as long as the text: growing would leave gaps that are too small for the next page.
        let mut whole = String::with_capacity(parts.iter().map(|part| part.as_ref().len()).sum());
        let ends = parts.iter().map(|part| {
            whole.push_str(part.as_ref());
            whole.len()
        });
        let ends: Vec<usize> = ends.collect();
        SharedStr::cut(whole, ends)
    }

    /// Cuts a text of less than 4 GiB at these places; the rest behind the last place belongs to no piece.
    pub fn cut(whole: String, ends: impl IntoIterator<Item = usize>) -> Vec<SharedStr> {
        let whole = SharedStr::from(whole);
        let mut start = 0;
        ends.into_iter().map(|end| whole.piece(std::mem::replace(&mut start, end)..end)).collect()
    }

    /// A piece of this piece, without a copy. Panics outside of it.
    pub fn piece(&self, range: Range<usize>) -> SharedStr {
        assert!(self.get(range.clone()).is_some(), "{range:?} cuts no piece out of {self:?}");
        // Both are at most `self.end`.
        let [start, end] = [range.start, range.end].map(|at| self.start + at as u32);
        SharedStr { whole: self.whole.clone(), start, end }
    }
}

impl Deref for SharedStr {
    type Target = str;

    fn deref(&self) -> &str {
        &self.whole[self.start as usize..self.end as usize]
    }
}

impl From<String> for SharedStr {
    fn from(whole: String) -> SharedStr {
        let end = u32::try_from(whole.len()).expect("names that share a text are less than 4 GiB");
        SharedStr { whole: Arc::new(whole.into()), start: 0, end }
    }
}

impl From<&str> for SharedStr {
    fn from(text: &str) -> SharedStr {
        text.to_owned().into()
    }
}

impl PartialEq for SharedStr {
    fn eq(&self, other: &SharedStr) -> bool {
        **self == **other
    }
}

impl Eq for SharedStr {}

impl PartialEq<str> for SharedStr {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialOrd for SharedStr {
    fn partial_cmp(&self, other: &SharedStr) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SharedStr {
    fn cmp(&self, other: &SharedStr) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl fmt::Debug for SharedStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Display for SharedStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_one_text_are_equal_to_texts_of_their_own() {
        let texts = SharedStr::many(["n01/ä.png", "", "n02/b.png"]);
        assert_eq!(texts, ["n01/ä.png", "", "n02/b.png"].map(SharedStr::from));
        let folder = texts[2].piece(0..3);
        assert_eq!((folder, texts[0].piece(4..6)), (SharedStr::from("n02"), SharedStr::from("ä")));
        assert!(texts[1] < texts[0] && size_of::<SharedStr>() == 16);
    }

    #[test]
    #[should_panic(expected = "cuts no piece")]
    fn a_piece_does_not_reach_into_its_neighbour() {
        SharedStr::many(["a", "b"])[0].piece(0..2);
    }
}
