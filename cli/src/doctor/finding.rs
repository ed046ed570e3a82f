//! The result of a check.

use std::fmt;

use serde::Serialize;

use crate::failure::chain;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// All is well.
    Ok,
    /// Works, but needs attention.
    Warn,
    /// Does not work.
    Fail,
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check.
    pub check: &'static str,
    /// The severity.
    pub verdict: CheckResult,
    /// The finding in words.
    pub detail: String,
    /// The advice: a command if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// A finding without a problem.
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: CheckResult::Ok, detail: detail.into(), advice: None }
    }

    /// A finding that needs attention.
    pub fn warn(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: CheckResult::Warn, detail: detail.into(), advice: Some(advice.into()) }
    }

    /// A finding that something does not work.
    pub fn fail(check: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, verdict: CheckResult::Fail, detail: detail.into(), advice: Some(advice.into()) }
    }

    /// The finding of a check that failed itself.
    pub fn failed(check: &'static str, error: &anyhow::Error, advice: impl Into<String>) -> Self {
        Self::fail(check, chain(error), advice)
    }

    /// Grades a number that should be small: a warning from `warn` on, a failure from `fail` on.
    pub fn graded(check: &'static str, value: f64, (warn, fail): (f64, f64), detail: String, advice: &str) -> Self {
        if value >= fail {
            Self::fail(check, detail, advice)
        } else if value >= warn {
            Self::warn(check, detail, advice)
        } else {
            Self::ok(check, detail)
        }
    }
}

/// The report as text: severity, check and detail, with the advice below.
pub fn lines(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let line = |it: &Finding| {
        let advice = it.advice.as_ref().map(|advice| format!("\n      {:width$}  -> {advice}", "")).unwrap_or_default();
        format!("{:4}  {:width$}  {}{advice}", it.verdict, it.check, one_line(&it.detail))
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_what_was_seen() {
        let findings =
            [Finding::ok("database", "fine"), Finding::fail("due", "90 s late", "posthaste run --only scheduler")];
        let wanted =
            "ok    database  fine\nfail  due       90 s late\n                -> posthaste run --only scheduler";
        assert_eq!(lines(&findings), wanted);
    }

    #[test]
    fn a_number_is_graded_by_its_bounds() {
        let verdict = |value| Finding::graded("x", value, (5.0, 60.0), String::new(), "").verdict;
        assert_eq!(
            [verdict(0.0), verdict(4.9), verdict(5.0), verdict(60.0)],
            [CheckResult::Ok, CheckResult::Ok, CheckResult::Warn, CheckResult::Fail]
        );
    }
}
