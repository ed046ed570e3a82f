//! Reports a failed command: one line with all causes, and what to do about it.

use std::{
    error::Error,
    io::{self, ErrorKind},
    process::ExitCode,
};

use broker::BrokerError;
use store::{DbError, migrate::MigrateError};

const DATABASE_AWAY: &str = "check DATABASE_URL and that PostgreSQL runs; `posthaste doctor` shows more";
const BROKER_AWAY: &str = "check AMQP_URL and that RabbitMQ runs; `posthaste doctor` shows more";

/// Prints why the command failed and returns the exit code for it.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", chain(error));
    if let Some(hint) = error.chain().find_map(hint) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

/// The error and its causes in one sentence. Many libraries include their cause in their own text, so repeated causes
/// are left out.
pub fn chain(error: &anyhow::Error) -> String {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if !said.last().is_some_and(|last| last.ends_with(&cause)) {
            said.push(cause);
        }
    }
    said.join(": ")
}

/// The reader of our output, such as `head`, has closed it on purpose. This is not a failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |cause: &io::Error| cause.kind() == ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(closed)
}

fn hint(cause: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = cause.downcast_ref::<DbError>() {
        return Some(database_hint(error));
    }
    if let Some(MigrateError::Connect(_)) = cause.downcast_ref() {
        return Some(DATABASE_AWAY);
    }
    cause.downcast_ref::<BrokerError>().map(|_| BROKER_AWAY)
}

fn database_hint(error: &DbError) -> &'static str {
    match error.sqlstate() {
        _ if error.is_schema_missing() => "the schema is missing or old: run `posthaste migrate`",
        None if error.is_unavailable() => DATABASE_AWAY,
        _ => "`posthaste doctor` shows what state the database is in",
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use diesel::result::DatabaseErrorKind;

    use super::*;

    #[test]
    fn a_cause_that_was_printed_already_is_not_repeated() {
        let error = anyhow::anyhow!("refused").context("IO error: refused").context("failed to connect");
        assert_eq!(chain(&error), "failed to connect: IO error: refused");
    }

    #[test]
    fn a_missing_table_is_answered_with_migrate() {
        let text = "42P01: relation \"tenants\" does not exist".to_owned();
        let missing = diesel::result::Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(text));
        let error = anyhow::Error::from(DbError::from(missing)).context("failed to list tenants");
        assert!(error.chain().find_map(hint).unwrap().contains("posthaste migrate"));
    }

    #[test]
    fn a_database_that_is_away_is_answered_with_its_setting() {
        let away = DbError::Unavailable("refused".into());
        let error = Err::<(), _>(away).context("failed to list tenants").unwrap_err();
        assert!(error.chain().find_map(hint).unwrap().contains("DATABASE_URL"));
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        assert!(is_closed_pipe(&io::Error::from(ErrorKind::BrokenPipe).into()));
        assert!(!is_closed_pipe(&anyhow::anyhow!("something else")));
    }
}
