//! A model's classes by name. Pure.

use std::collections::HashMap;

use proto::relaxed;

/// Finds a model's class by its name in a data set.
#[derive(Clone, Debug)]
pub struct ClassIndex {
    exact: HashMap<String, Option<u32>>,
    relaxed: HashMap<String, Option<u32>>,
}

impl ClassIndex {
    /// `classes`: the model's, in order.
    pub fn new<S: AsRef<str>>(classes: &[S]) -> ClassIndex {
        let index = |name: fn(&str) -> String| {
            let mut map = HashMap::new();
            for (i, class) in (0u32..).zip(classes) {
                // Two classes have one name, as some of ImageNet's: the name finds neither.
                map.entry(name(class.as_ref())).and_modify(|known| *known = None).or_insert(Some(i));
            }
            map
        };
        ClassIndex { exact: index(str::to_owned), relaxed: index(relaxed) }
    }

    /// The class with exactly this name; else the one whose name differs only in case and in `_`, `-`, `/` and spaces.
    /// `None` without such a class, or with more than one.
    pub fn find(&self, name: &str) -> Option<u32> {
        let exact = self.exact.get(name).copied();
        exact.unwrap_or_else(|| self.relaxed.get(&relaxed(name)).copied().flatten())
    }
}
