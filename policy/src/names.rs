//! Names that are numbers as long as somebody uses them.
//!
//! Owns the numbering of the names of sets, ports and policies. A number is free again when its last user lets it go, so
//! that names that come and go for years take no more room than those in use at one time.

use hashbrown::HashMap;

/// Names in use and their numbers, from 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    numbers: HashMap<String, u32>,
    /// Name and users by number; no users: the number is free.
    entries: Vec<(String, u32)>,
    free: Vec<u32>,
}

impl Names {
    /// The number of a name, for one user more.
    pub(crate) fn take(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            self.entries[*number as usize].1 += 1;
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push((String::new(), 0));
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        self.entries[number as usize] = (name.to_owned(), 1);
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// One user less; true when that was the last and the number is free.
    pub(crate) fn let_go(&mut self, number: u32) -> bool {
        let (name, users) = &mut self.entries[number as usize];
        *users -= 1;
        if *users > 0 {
            return false;
        }
        self.numbers.remove(name.as_str());
        name.clear();
        self.free.push(number);
        true
    }

    /// The number of a name that somebody uses.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_again_only_after_its_last_user_let_it_go() {
        let mut names = Names::default();
        let (a, b) = (names.take("a"), names.take("b"));
        assert_eq!((names.take("a"), b), (a, 1));
        assert!(!names.let_go(a));
        assert_eq!(names.number("a"), Some(a));
        assert!(names.let_go(a));
        assert_eq!(names.number("a"), None);
        assert_eq!(names.take("c"), a, "free numbers are used first");
        assert_eq!((names.number("c"), names.number("b")), (Some(a), Some(b)));
    }
}
