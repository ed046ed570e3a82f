//! A fixed SQL text whose prepared form is kept.
//!
//! diesel treats `sql_query` and every `UPDATE … FROM` as text that may differ each time, and prepares it anew on
//! every call: one more round trip per batch. Our hot statements never change, so they are prepared once per connection.

use std::marker::PhantomData;

use diesel::{
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    result::QueryResult,
    serialize::ToSql,
    sql_types::HasSqlType,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl, methods::LoadQuery};

use super::{DbResult, Store};

/// A fixed SQL text with its binds. `Row` is the tuple of SQL types it returns.
pub struct Statement<Row> {
    text: &'static str,
    binds: Vec<Box<dyn QueryFragment<Pg> + Send>>,
    row: PhantomData<fn() -> Row>,
}

/// A statement with the text `text`, in which each `?` stands for the next bind.
pub const fn statement<Row>(text: &'static str) -> Statement<Row> {
    Statement { text, binds: Vec::new(), row: PhantomData }
}

impl<Row> Statement<Row> {
    /// Binds the next `?`.
    pub fn bind<St, V>(mut self, value: V) -> Self
    where
        Pg: HasSqlType<St>,
        V: ToSql<St, Pg> + Send + 'static,
        St: 'static,
    {
        self.binds.push(Box::new(Bind::<St, V> { value, kind: PhantomData }));
        self
    }
}

impl<Row: Send + 'static> Statement<Row> {
    /// Runs it on a connection of the pool and returns every row.
    pub async fn rows<T>(self, store: &Store) -> DbResult<Vec<T>>
    where
        Self: LoadQuery<'static, AsyncPgConnection, T>,
        T: Send,
    {
        Ok(RunQueryDsl::load(self, &mut *store.conn().await?).await?)
    }

    /// Runs it on a connection of the pool and returns its first row.
    pub async fn row<T>(self, store: &Store) -> DbResult<T>
    where
        Self: LoadQuery<'static, AsyncPgConnection, T>,
        T: Send,
    {
        Ok(RunQueryDsl::get_result(self, &mut *store.conn().await?).await?)
    }

    /// Runs it on a connection of the pool and returns how many rows it touched.
    pub async fn run(self, store: &Store) -> DbResult<usize> {
        Ok(RunQueryDsl::execute(self, &mut *store.conn().await?).await?)
    }
}

impl<Row> QueryFragment<Pg> for Statement<Row> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut binds = self.binds.iter();
        for (index, piece) in self.text.split('?').enumerate() {
            if index > 0 {
                let bind = binds
                    .next()
                    .ok_or_else(|| diesel::result::Error::QueryBuilderError("fewer binds than `?`".into()))?;
                bind.walk_ast(out.reborrow())?;
            }
            out.push_sql(piece);
        }
        Ok(())
    }
}

/// Without a static id the text itself is the key of the prepared statement.
impl<Row> QueryId for Statement<Row> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Row> Query for Statement<Row> {
    type SqlType = Row;
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
