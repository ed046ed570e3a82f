//! The work of operators: migrations, storage, dead letters, logins of the database.

mod database_access;
mod migrations;
mod operators;
mod storage;
