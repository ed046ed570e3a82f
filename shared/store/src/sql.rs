//! Statements: each is a file in `sql/` with named binds, and a struct that names its binds and its columns.
//!
//! [`sql!`] declares a statement, [`row!`] a row that is read by the names of its columns. A statement's text is
//! resolved once; each connection keeps its prepared form. A test prepares every statement against the migrated schema
//! and compares the types of its binds and columns with the declaration (`tests/tests/statements.rs`).
//!
//! In a file, `:name` is a bind, and `@` after the name of a partitioned table stands for the suffix of the partition,
//! if there is exactly one.

use std::{collections::BTreeMap, iter::Peekable, str::CharIndices};

use diesel::{
    pg::{Pg, PgMetadataLookup},
    sql_types::HasSqlType,
};

/// Follows the name of a partitioned table in a statement's text; replaced by the suffix of the partition, if there
/// is exactly one.
pub const DAY: char = '@';

/// A piece of a statement's text.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// SQL.
    Text(String),
    /// The first place of a bind, by its index in the list of binds.
    Bind(usize),
    /// Another place of a bind, by the number of its parameter.
    Again(usize),
    /// The suffix of a partition.
    Day,
}

/// A text that is resolved.
#[derive(Debug)]
pub struct Resolved(pub(crate) Vec<Piece>);

impl Resolved {
    /// Resolves the text of `file` for these binds.
    ///
    /// # Panics
    ///
    /// Panics if the text names another bind, or not each of them.
    pub fn new(file: &str, text: &str, binds: &[&str]) -> Self {
        let mut pieces = Vec::new();
        let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
        let mut plain = String::new();
        let mut rest = text.char_indices().peekable();
        while let Some((at, letter)) = rest.next() {
            match letter {
                '\'' | '"' => plain.push_str(&quoted(text, at, letter, &mut rest)),
                '-' if text[at..].starts_with("--") => while rest.next_if(|(_, letter)| *letter != '\n').is_some() {},
                ':' if text[at..].starts_with("::") => {
                    rest.next();
                    plain.push_str("::");
                }
                ':' if text[at + 1..].starts_with(|letter: char| letter.is_ascii_lowercase()) => {
                    let name = name(text, at + 1, &mut rest);
                    let bind = binds.iter().position(|bind| *bind == name);
                    let bind = bind.unwrap_or_else(|| panic!("{file} names `:{name}`, which its struct lacks"));
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    let next = numbers.len() + 1;
                    let number = *numbers.entry(bind).or_insert(next);
                    pieces.push(if number == next { Piece::Bind(bind) } else { Piece::Again(number) });
                }
                DAY => {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.push(Piece::Day);
                }
                other => plain.push(other),
            }
        }
        pieces.push(Piece::Text(plain));
        if let Some((_, unused)) = binds.iter().enumerate().find(|(bind, _)| !numbers.contains_key(bind)) {
            panic!("{file} does not name `:{unused}`");
        }
        Self(pieces)
    }

    /// The text with numbered parameters, over whole tables, and the binds in the order of their numbers.
    fn numbered(&self) -> (String, Vec<usize>) {
        let (mut text, mut binds) = (String::new(), Vec::new());
        for piece in &self.0 {
            match piece {
                Piece::Text(sql) => text.push_str(sql),
                Piece::Bind(bind) => {
                    binds.push(*bind);
                    text.push_str(&format!("${}", binds.len()));
                }
                Piece::Again(number) => text.push_str(&format!("${number}")),
                Piece::Day => {}
            }
        }
        (text, binds)
    }
}

/// A text in quotes, from the opening one at `at` to the closing one.
fn quoted(text: &str, at: usize, quote: char, rest: &mut Peekable<CharIndices<'_>>) -> String {
    let end = rest.by_ref().find(|(_, letter)| *letter == quote).map_or(text.len(), |(end, _)| end + 1);
    text[at..end].to_owned()
}

fn name<'a>(text: &'a str, start: usize, rest: &mut Peekable<CharIndices<'_>>) -> &'a str {
    let is_part = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    let mut end = start;
    while let Some((at, letter)) = rest.next_if(|(_, letter)| is_part(*letter)) {
        end = at + letter.len_utf8();
    }
    &text[start..end]
}

/// A column or bind: its name and the OID of its type.
pub type Typed = (&'static str, u32);

/// The binds and columns of a statement, for the test that compares it with the database.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The file below `sql/`.
    pub file: &'static str,
    /// The text with `$1`, `$2`, … for its binds, over whole tables.
    pub text: String,
    /// The binds, in the order of their numbers.
    pub binds: Vec<Typed>,
    /// The columns that are read: one without a name is read by its place; `None`: the statement returns no rows.
    pub columns: Option<Vec<Typed>>,
}

impl Shape {
    /// The shape of a statement of `file`.
    pub fn new(file: &'static str, text: &Resolved, binds: &[Typed], columns: Option<Vec<Typed>>) -> Self {
        let (text, order) = text.numbered();
        Self { file, text, binds: order.into_iter().filter_map(|bind| binds.get(bind).copied()).collect(), columns }
    }
}

/// The OID of an SQL type.
pub fn oid<St>() -> u32
where
    Pg: HasSqlType<St>,
{
    /// The types in use are built in: none is looked up.
    struct Unused;
    impl PgMetadataLookup for Unused {
        fn lookup_type(&mut self, _: &str, _: Option<&str>) -> diesel::pg::PgTypeMetadata {
            diesel::pg::PgTypeMetadata::new(0, 0)
        }
    }
    <Pg as HasSqlType<St>>::metadata(&mut Unused).oid().unwrap_or_default()
}

/// A row that is read by the names of its columns.
pub trait Columns {
    /// Its columns.
    fn columns() -> Vec<Typed>;
}

/// Declares a row: `name: Rust type as SQL type`. It is read by the names of its columns.
#[macro_export]
macro_rules! row {
    ($(#[$about:meta])* $vis:vis struct $name:ident {
        $($(#[$doc:meta])* $field_vis:vis $field:ident: $rust:ty as $sql:ty),+ $(,)?
    }) => {
        $(#[$about])*
        #[derive(diesel::QueryableByName)]
        #[diesel(check_for_backend(diesel::pg::Pg))]
        $vis struct $name {
            $($(#[$doc])* #[diesel(sql_type = $sql)] $field_vis $field: $rust,)+
        }

        impl $crate::sql::Columns for $name {
            fn columns() -> Vec<$crate::sql::Typed> {
                vec![$((stringify!($field), $crate::sql::oid::<$sql>())),+]
            }
        }
    };
}

/// Declares a statement: its struct, its file, its binds as `name: Rust type as SQL type`, and its result: rows of a
/// struct of [`row!`], one column as `Rust type as SQL type`, or nothing.
#[macro_export]
macro_rules! sql {
    ($(#[$about:meta])* $vis:vis $name:ident in $file:literal { $($fields:tt)* } -> $row:ty as $sql:ty) => {
        $crate::sql::sql!(@ [$(#[$about])*] [$vis] $name $file { $($fields)* }
            $row, $sql, Some(vec![("", $crate::sql::oid::<$sql>())]));
    };
    ($(#[$about:meta])* $vis:vis $name:ident in $file:literal { $($fields:tt)* } -> $row:ty) => {
        $crate::sql::sql!(@ [$(#[$about])*] [$vis] $name $file { $($fields)* }
            $row, diesel::sql_types::Untyped, Some(<$row as $crate::sql::Columns>::columns()));
    };
    ($(#[$about:meta])* $vis:vis $name:ident in $file:literal { $($fields:tt)* }) => {
        $crate::sql::sql!(@ [$(#[$about])*] [$vis] $name $file { $($fields)* } (), diesel::sql_types::Untyped, None);
    };
    (@ [$($about:tt)*] [$vis:vis] $name:ident $file:literal { $($field:ident: $rust:ty as $sql:ty),* $(,)? }
        $row:ty, $st:ty, $columns:expr) => {
        $($about)*
        $vis struct $name { $($vis $field: $rust),* }

        impl $name {
            fn resolved() -> &'static $crate::sql::Resolved {
                static TEXT: std::sync::LazyLock<$crate::sql::Resolved> = std::sync::LazyLock::new(|| {
                    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/", $file));
                    $crate::sql::Resolved::new($file, text, &[$(stringify!($field)),*])
                });
                &TEXT
            }

            /// The statement with its binds.
            $vis fn query(self) -> $crate::statement::Query<$row, $st> {
                $crate::statement::Query::new(Self::resolved(), vec![$($crate::statement::bind::<$sql, _>(self.$field)),*])
            }

            fn shape() -> $crate::sql::Shape {
                let binds: &[$crate::sql::Typed] = &[$((stringify!($field), $crate::sql::oid::<$sql>())),*];
                $crate::sql::Shape::new($file, Self::resolved(), binds, $columns)
            }
        }
    };
}

/// Lists the statements of a module for the test that prepares them all.
#[macro_export]
macro_rules! statements {
    ($($name:ident),+ $(,)?) => {
        pub(crate) fn shapes() -> Vec<$crate::sql::Shape> {
            vec![$($name::shape()),+]
        }
    };
}

/// Declares a trait over [`crate::Store`] that is the table of contents of a crate: each method returns a handle, a
/// reference to the store whose methods are the statements of one file.
#[macro_export]
macro_rules! handles {
    ($(#[$about:meta])* pub trait $trait:ident { $($(#[$doc:meta])* $method:ident: $handle:ident),+ $(,)? }) => {
        $(#[$about])*
        pub trait $trait {
            $($(#[$doc])* fn $method(&self) -> $handle<'_>;)+
        }

        impl $trait for $crate::Store {
            $(fn $method(&self) -> $handle<'_> {
                $handle { store: self }
            })+
        }

        $($(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $handle<'a> {
            store: &'a $crate::Store,
        })+
    };
}

pub use crate::{row, sql, statements};

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(text: &str, binds: &[&str]) -> (String, Vec<usize>) {
        Resolved::new("a.sql", text, binds).numbered()
    }

    #[test]
    fn names_become_numbers_in_the_order_of_the_text() {
        let text = "SELECT :b::int8, :a, :b FROM messages@ WHERE x = ':c' AND y = \":d\" AND z = 'HH24:MI' -- :e\n";
        let (text, order) = numbered(text, &["a", "b"]);
        let wanted = "SELECT $1::int8, $2, $1 FROM messages WHERE x = ':c' AND y = \":d\" AND z = 'HH24:MI' \n";
        assert_eq!((text.as_str(), order), (wanted, vec![1, 0]));
        assert_eq!(numbered("a[1:2], b::text", &[]).0, "a[1:2], b::text");
    }

    #[test]
    #[should_panic(expected = "a.sql names `:b`, which its struct lacks")]
    fn a_bind_that_a_struct_lacks_is_noticed() {
        numbered("SELECT :a, :b", &["a"]);
    }

    #[test]
    #[should_panic(expected = "a.sql does not name `:b`")]
    fn a_bind_that_a_text_lacks_is_noticed() {
        numbered("SELECT :a", &["a", "b"]);
    }
}
