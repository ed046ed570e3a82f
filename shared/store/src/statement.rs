//! A fixed SQL text whose prepared form is kept.
//!
//! diesel treats `sql_query` and every `UPDATE … FROM` as text that may differ each time, and prepares it on every
//! call: one more round trip per batch. Our hot statements never change, so we prepare them once per connection.

use std::marker::PhantomData;

use chrono::{DateTime, NaiveDate};
use diesel::{
    pg::Pg,
    query_builder::{self, AstPass, QueryFragment, QueryId},
    result::{Error, QueryResult},
    serialize::ToSql,
    sql_types::{Bool, HasSqlType, Text},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl, methods::LoadQuery};
use domain::{TenantId, clock};
use uuid::Uuid;

use super::{
    DbResult, Store,
    sql::{DAY, Piece, Resolved, sql, statements},
};

/// A fixed SQL text with its binds. `SqlTypes` is the tuple of the SQL types that it returns.
pub struct Statement<SqlTypes> {
    text: Source,
    partition: String,
    /// Not kept in prepared form: its text contains one of any number of days.
    is_rare: bool,
    binds: Vec<Box<dyn QueryFragment<Pg> + Send>>,
    scope: Option<TenantId>,
    types: PhantomData<fn() -> SqlTypes>,
}

/// A text that is known at compile time.
enum Source {
    /// Each `?` is one bind, in order.
    Ordered(&'static str),
    /// Of a file, with named binds.
    Named(&'static Resolved),
}

/// A statement with the text `text`, in which each `?` is one bind, in order.
pub const fn statement<SqlTypes>(text: &'static str) -> Statement<SqlTypes> {
    let text = Source::Ordered(text);
    Statement { text, partition: String::new(), is_rare: false, binds: Vec::new(), scope: None, types: PhantomData }
}

/// A value for a bind.
pub fn bind<St, V>(value: V) -> Box<dyn QueryFragment<Pg> + Send>
where
    Pg: HasSqlType<St>,
    V: ToSql<St, Pg> + Send + 'static,
    St: 'static,
{
    Box::new(Bind::<St, V> { value, kind: PhantomData })
}

impl<SqlTypes> Statement<SqlTypes> {
    /// A statement of a file; `binds` are in the order of its struct.
    pub const fn resolved(text: &'static Resolved, binds: Vec<Box<dyn QueryFragment<Pg> + Send>>) -> Self {
        let text = Source::Named(text);
        Self { text, partition: String::new(), is_rare: false, binds, scope: None, types: PhantomData }
    }

    /// Opens only the partition that contains all of `ids`, if there is one. A statement over a parent table locks
    /// and opens every partition of it, which for a batch of a few rows costs more than the rows.
    pub fn in_partition_of<'a>(mut self, ids: impl IntoIterator<Item = &'a Uuid>) -> Self {
        self.partition = partition_of(ids);
        self
    }

    /// Opens only the partition of `day`, which must exist.
    pub fn in_partition(mut self, day: NaiveDate) -> Self {
        (self.partition, self.is_rare) = (suffix(day), true);
        self
    }

    /// Opens only the partition that contains all of `ids`, which are of one day, however long ago. `None` if that
    /// day was dropped: then none of their rows exist.
    pub async fn in_existing_partition_of(self, store: &Store, ids: &[Uuid]) -> DbResult<Option<Self>> {
        let this = self.in_partition_of(ids);
        let Some(Some(day)) = ids.first().map(day) else { return Ok(Some(this)) };
        if !this.partition.is_empty() || day >= clock::now().date_naive() {
            return Ok(Some(this));
        }
        let exists = HasDay { suffix: suffix(day) }.query().row(store).await?;
        Ok(exists.then(|| this.in_partition(day)))
    }

    /// Restricts the statement to the rows of this tenant, whatever its text says; `None`: all tenants.
    pub const fn within(mut self, scope: Option<TenantId>) -> Self {
        self.scope = scope;
        self
    }

    /// Binds the next `?`.
    pub fn bind<St, V>(mut self, value: V) -> Self
    where
        Pg: HasSqlType<St>,
        V: ToSql<St, Pg> + Send + 'static,
        St: 'static,
    {
        self.binds.push(bind::<St, V>(value));
        self
    }
}

impl<SqlTypes: Send + 'static> Statement<SqlTypes> {
    /// Runs it on a connection of the pool and returns every row.
    pub async fn rows<T>(self, store: &Store) -> DbResult<Vec<T>>
    where
        Self: LoadQuery<'static, AsyncPgConnection, T>,
        T: Send,
    {
        let mut conn = store.within(self.scope).await?;
        let rows = RunQueryDsl::load(self, &mut *conn).await;
        conn.done(rows).await
    }

    /// Runs it on a connection of the pool and returns its first row.
    ///
    /// Reads the answer to its end: a row may arrive before its commit, and only the end of the answer confirms the
    /// commit.
    pub async fn row<T>(self, store: &Store) -> DbResult<T>
    where
        Self: LoadQuery<'static, AsyncPgConnection, T>,
        T: Send,
    {
        let mut conn = store.within(self.scope).await?;
        let rows: QueryResult<Vec<T>> = RunQueryDsl::load(self, &mut *conn).await;
        conn.done(rows.and_then(|rows| rows.into_iter().next().ok_or(Error::NotFound))).await
    }

    /// Runs it on a connection of the pool and returns the number of rows it affected.
    pub async fn run(self, store: &Store) -> DbResult<usize> {
        let mut conn = store.within(self.scope).await?;
        let touched = RunQueryDsl::execute(self, &mut *conn).await;
        conn.done(touched).await
    }
}

impl<SqlTypes> QueryFragment<Pg> for Statement<SqlTypes> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        if self.is_rare {
            out.unsafe_to_cache_prepared();
        }
        match self.text {
            Source::Ordered(text) => self.walk_ordered(text, out),
            Source::Named(text) => self.walk_named(text, out),
        }
    }
}

impl<SqlTypes> Statement<SqlTypes> {
    fn walk_named<'b>(&'b self, text: &Resolved, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let missing = || Error::QueryBuilderError("a bind is missing".into());
        for piece in &text.0 {
            match piece {
                Piece::Text(sql) => out.push_sql(sql),
                Piece::Bind(bind) => self.binds.get(*bind).ok_or_else(missing)?.walk_ast(out.reborrow())?,
                Piece::Again(number) => out.push_sql(&format!("${number}")),
                Piece::Day => out.push_sql(&self.partition),
            }
        }
        Ok(())
    }

    fn walk_ordered<'b>(&'b self, text: &str, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut binds = self.binds.iter();
        for (index, piece) in text.split('?').enumerate() {
            if index > 0 {
                let bind = binds
                    .next()
                    .ok_or_else(|| diesel::result::Error::QueryBuilderError("fewer binds than `?`".into()))?;
                bind.walk_ast(out.reborrow())?;
            }
            for (index, part) in piece.split(DAY).enumerate() {
                if index > 0 {
                    out.push_sql(&self.partition);
                }
                out.push_sql(part);
            }
        }
        Ok(())
    }
}

/// A statement of a file with its binds, which returns rows `Row` that are read from columns of `SqlTypes`.
pub struct Query<Row, SqlTypes> {
    statement: Statement<SqlTypes>,
    row: PhantomData<fn() -> Row>,
}

impl<Row, SqlTypes> Query<Row, SqlTypes> {
    /// The statement of a file; `binds` are in the order of its struct.
    pub fn new(text: &'static Resolved, binds: Vec<Box<dyn QueryFragment<Pg> + Send>>) -> Self {
        Self { statement: Statement::resolved(text, binds), row: PhantomData }
    }

    /// Opens only the partition that contains all of `ids`, if there is one. A statement over a parent table locks
    /// and opens every partition of it, which for a batch of a few rows costs more than the rows.
    pub fn in_partition_of<'a>(self, ids: impl IntoIterator<Item = &'a Uuid>) -> Self {
        Self { statement: self.statement.in_partition_of(ids), row: PhantomData }
    }

    /// Opens only the partition of `day`, which must exist.
    pub fn in_partition(self, day: NaiveDate) -> Self {
        Self { statement: self.statement.in_partition(day), row: PhantomData }
    }

    /// Opens only the partition that contains all of `ids`, which are of one day, however long ago. `None` if that
    /// day was dropped: then none of their rows exist.
    pub async fn in_existing_partition_of(self, store: &Store, ids: &[Uuid]) -> DbResult<Option<Self>> {
        let statement = self.statement.in_existing_partition_of(store, ids).await?;
        Ok(statement.map(|statement| Self { statement, row: PhantomData }))
    }

    /// Restricts the statement to the rows of this tenant, whatever its text says; `None`: all tenants.
    pub fn within(self, scope: Option<TenantId>) -> Self {
        Self { statement: self.statement.within(scope), row: PhantomData }
    }
}

impl<Row: Send + 'static, SqlTypes: Send + 'static> Query<Row, SqlTypes>
where
    Statement<SqlTypes>: LoadQuery<'static, AsyncPgConnection, Row>,
{
    /// Runs it on a connection of the pool and returns every row.
    pub async fn rows(self, store: &Store) -> DbResult<Vec<Row>> {
        self.statement.rows(store).await
    }

    /// Runs it on a connection of the pool and returns its first row; an error if there is none.
    ///
    /// Reads the answer to its end: a row may arrive before its commit, and only the end of the answer confirms the
    /// commit.
    pub async fn row(self, store: &Store) -> DbResult<Row> {
        self.statement.row(store).await
    }

    /// Runs it on a connection of the pool and returns its first row, if there is one.
    pub async fn first(self, store: &Store) -> DbResult<Option<Row>> {
        Ok(self.rows(store).await?.into_iter().next())
    }

    /// Runs it on this connection, within its transaction if there is one, and returns every row.
    pub async fn rows_on(self, conn: &mut AsyncPgConnection) -> QueryResult<Vec<Row>> {
        RunQueryDsl::load(self.statement, conn).await
    }

    /// As [`Query::rows_on`], with the first row; an error if there is none.
    pub async fn row_on(self, conn: &mut AsyncPgConnection) -> QueryResult<Row> {
        self.rows_on(conn).await?.into_iter().next().ok_or(Error::NotFound)
    }
}

impl<Row, SqlTypes: Send + 'static> Query<Row, SqlTypes> {
    /// Runs it on a connection of the pool and returns the number of rows it affected.
    pub async fn run(self, store: &Store) -> DbResult<usize> {
        self.statement.run(store).await
    }

    /// Runs it on this connection, within its transaction if there is one, and returns the number of rows it affected.
    pub async fn run_on(self, conn: &mut AsyncPgConnection) -> QueryResult<usize> {
        RunQueryDsl::execute(self.statement, conn).await
    }
}

/// The suffix of the one daily partition that contains all of these time-ordered ids. Empty if they are of several
/// days, or of a day so far from now that its partition may be dropped or not created yet.
fn partition_of<'a>(ids: impl IntoIterator<Item = &'a Uuid>) -> String {
    let mut days = ids.into_iter().map(day);
    let today = clock::now().date_naive();
    let Some(Some(first)) = days.next() else { return String::new() };
    let near = (today - first).num_days().abs() <= 1;
    if near && days.all(|day| day == Some(first)) { suffix(first) } else { String::new() }
}

/// The suffix of the partitions of a day.
fn suffix(day: NaiveDate) -> String {
    day.format("_%Y%m%d").to_string()
}

/// The UTC day in which a UUIDv7 was created.
pub fn day(id: &Uuid) -> Option<NaiveDate> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    Some(DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)?.date_naive())
}

/// Without a static id diesel uses the text as the key of the prepared statement.
impl<SqlTypes> QueryId for Statement<SqlTypes> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<SqlTypes> query_builder::Query for Statement<SqlTypes> {
    type SqlType = SqlTypes;
}

struct Bind<St, V> {
    value: V,
    kind: PhantomData<fn() -> St>,
}

impl<St, V> QueryFragment<Pg> for Bind<St, V>
where
    Pg: HasSqlType<St>,
    V: ToSql<St, Pg>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_bind_param::<St, V>(&self.value)
    }
}

sql!(HasDay in "statement/has_day.sql" { suffix: String as Text } -> bool as Bool);
statements!(HasDay);

#[cfg(test)]
mod tests {
    use uuid::{NoContext, Timestamp};

    use super::*;

    fn id(at: DateTime<chrono::Utc>) -> Uuid {
        Uuid::new_v7(Timestamp::from_unix(NoContext, u64::try_from(at.timestamp()).unwrap(), 0))
    }

    #[test]
    fn only_ids_of_one_near_day_name_a_partition() {
        // Repeat if the day changed meanwhile.
        let (now, named) = loop {
            let now = clock::now();
            let named = [partition_of([&id(now), &id(now)]), partition_of([&id(now - chrono::Duration::days(1))])];
            if clock::now().date_naive() == now.date_naive() {
                break (now, named);
            }
        };
        let (today, yesterday) = (id(now), id(now - chrono::Duration::days(1)));
        let days = [now, now - chrono::Duration::days(1)].map(|day| day.format("_%Y%m%d").to_string());
        assert_eq!(named, days);
        assert_eq!(partition_of([&today, &yesterday]), "", "two days");
        assert_eq!(partition_of([&id(now - chrono::Duration::days(4))]), "", "long ago");
        assert_eq!(partition_of([&Uuid::nil()]), "", "not time-ordered");
        assert_eq!(partition_of([]), "");
    }
}
