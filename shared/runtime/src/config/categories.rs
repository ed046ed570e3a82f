//! Mails selected by their category.

/// A selection of mails by their category.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Categories {
    /// None of them.
    #[default]
    None,
    /// Those of these categories.
    These(Vec<String>),
    /// All, those without a category too.
    All,
}

impl Categories {
    /// Whether a mail is in the selection.
    pub fn have(&self, category: Option<&str>) -> bool {
        match self {
            Self::None => false,
            Self::These(names) => category.is_some_and(|category| names.iter().any(|name| name == category)),
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mails_are_picked_by_category() {
        let these = Categories::These(vec!["marketing".to_owned(), "news".to_owned()]);
        assert!(these.have(Some("news")) && !these.have(Some("security")) && !these.have(None));
        assert!(Categories::All.have(None) && !Categories::None.have(Some("news")));
    }
}
