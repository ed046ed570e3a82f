//! The tables of states and of event kinds, compared with the texts of the statements and with the page that shows them.

use std::{collections::BTreeSet, fs, path::Path};

use domain::{
    EventKind, State, Trigger,
    event::{TRIED_BIT, WRONG_BIT},
    state::TRANSITIONS,
};

use super::{assert_clean, files_below, relative, root};

type States = BTreeSet<State>;

/// The states of deliveries that did not arrive, as broadcasts count them.
const NOT_ARRIVED: [State; 4] = [State::Failed, State::Bounced, State::Dead, State::Expired];

#[test]
fn statements_make_only_transitions_of_the_table() {
    let all: BTreeSet<String> =
        statements().iter().flat_map(|(_, text)| changes(text)).map(|change| change.to).collect();
    assert!(["'queued'", "'sending'", "'cancelled'", "e.state"].iter().all(|to| all.contains(*to)), "{all:?}");
    assert_clean(statements().into_iter().flat_map(|(file, text)| {
        changes(&text).into_iter().filter_map(move |change| Some(format!("{file}: {}", fault(change)?)))
    }));
}

#[test]
fn a_transition_that_is_not_in_the_table_is_noticed() {
    let faults = |text: &str| changes(text).into_iter().filter_map(fault).count();
    for good in [
        "UPDATE deliveries@ d SET state = 'sending', run = 1 FROM h WHERE d.state = 'queued' RETURNING 1",
        "UPDATE deliveries d SET state = 'queued' WHERE d.state IN ('scheduled', 'retrying') RETURNING 1",
        "UPDATE deliveries d SET state = e.state WHERE d.state = 'sending'",
        "UPDATE deliveries d SET recipient = '' WHERE d.state = 'queued'",
    ] {
        assert_eq!(faults(good), 0, "{good}");
    }
    for bad in [
        "UPDATE deliveries SET state = 'queued' WHERE state IN ('scheduled', 'sending') RETURNING 1",
        "UPDATE deliveries d SET state = 'cancelled' WHERE d.state = 'scheduled'",
        "UPDATE deliveries d SET state = 'cancelled' WHERE d.id = 1",
        "UPDATE deliveries d SET state = 'eaten' WHERE d.state = 'queued'",
        "UPDATE deliveries d SET lane = 'a', state = x.state WHERE d.state = 'queued'",
    ] {
        assert_eq!(faults(bad), 1, "{bad}");
    }
}

#[test]
fn lists_of_states_in_statements_come_from_the_table() {
    let open: States = State::ALL.iter().copied().filter(|state| !state.is_end()).collect();
    let without = |left_out: State| open.iter().copied().filter(|state| *state != left_out).collect::<States>();
    let late = Trigger::Outcome.sources().filter(|state| *state != State::Sending).collect();
    let known: [States; 6] = [
        open.clone(),
        without(State::Retrying),
        late,
        Trigger::Due.sources().collect(),
        Trigger::Cancellation.sources().collect(),
        NOT_ARRIVED.into_iter().collect(),
    ];
    assert_clean(statements().into_iter().flat_map(|(file, text)| {
        let unknown: Vec<States> = lists(&text).into_iter().filter(|list| !known.contains(list)).collect();
        unknown.into_iter().map(move |list| format!("{file} lists {list:?}, which is no set of the table"))
    }));
}

#[test]
fn the_counted_kinds_of_the_log_are_those_of_the_table() {
    let sums = [(TRIED_BIT, "tried"), (WRONG_BIT, "wrong")];
    let kinds = EventKind::counted().into_iter().map(|kind| (kind.info().bit, kind.as_str())).chain(sums);
    let values: Vec<String> = kinds.map(|(bit, word)| format!("({bit}, '{word}')")).collect();
    let values = format!("(VALUES {}) AS k (bit, kind)", values.join(", "));
    let with_list = statements().into_iter().filter(|(_, text)| text.contains("AS k (bit, kind)"));
    let found: Vec<(String, bool)> = with_list.map(|(file, text)| (file, text.contains(&values))).collect();
    assert!(found.iter().all(|(file, is_same)| *is_same && file.ends_with("events/record.sql")), "{found:?}\n{values}");
    assert_eq!(found.len(), 1, "the list of counted kinds stands in one statement");
}

#[test]
fn the_page_shows_the_table_of_transitions() {
    let page = fs::read_to_string(root().join("docs/states.md")).unwrap();
    assert!(page.contains(&table()), "docs/states.md does not contain this table:\n{}", table());
}

/// The table as the page shows it.
fn table() -> String {
    let mut table = "| from | cause | to |\n|---|---|---|\n".to_owned();
    for row in TRANSITIONS {
        let from = row.from.map_or("–".to_owned(), |state| format!("`{state}`"));
        let to: Vec<String> = row.to.iter().map(|state| format!("`{state}`")).collect();
        table.push_str(&format!("| {from} | {} | {} |\n", row.trigger, to.join(", ")));
    }
    table
}

/// Every statement: its path, and its text in one line without comments.
fn statements() -> Vec<(String, String)> {
    let files = files_below(&root().join("shared")).into_iter().filter(|path| relative(path).contains("/sql/"));
    let line = |line: &str| line.split("--").next().unwrap_or_default().to_owned();
    let text = |path: &Path| fs::read_to_string(path).unwrap().lines().map(line).collect::<Vec<_>>().join(" ");
    let one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let all: Vec<_> = files.map(|path| (relative(&path), one_line(text(&path)))).collect();
    assert!(all.len() > 100, "statements are found");
    all
}

/// A change of states: the one written, and those before.
struct Change {
    to: String,
    from: States,
}

/// The changes of states that a text makes.
fn changes(text: &str) -> Vec<Change> {
    let updates = text.split("UPDATE deliveries").skip(1);
    let changes = updates.filter_map(|update| {
        let update = update.split(" RETURNING ").next()?;
        let (set, condition) = update.split_once(" WHERE ").unwrap_or((update, ""));
        let written = set.split_once(" SET ")?.1;
        let (_, to) =
            written.split(", ").find_map(|part| part.split_once("state = ").filter(|(name, _)| name.is_empty()))?;
        let to = to.split(' ').next()?.to_owned();
        Some(Change { to, from: states_of(condition) })
    });
    changes.collect()
}

/// Why a change is none of the table.
fn fault(Change { to, from }: Change) -> Option<String> {
    // The statement that records events takes its states from them. A test runs it with every event from every state.
    if to == "e.state" {
        return None;
    }
    let Ok(state) = to.trim_matches('\'').parse::<State>() else { return Some(format!("{to} is no state")) };
    let is_cause = |trigger: &Trigger| {
        from == trigger.sources().collect::<States>() && from.iter().all(|from| trigger.moves(Some(*from), state))
    };
    let is_known = Trigger::ALL.iter().any(is_cause) && !from.is_empty();
    (!is_known).then(|| format!("moves from {from:?} to {state}, which is no cause of the table"))
}

/// The states that a condition asks for.
fn states_of(condition: &str) -> States {
    let one = condition.split("state = '").skip(1).filter_map(|rest| rest.split('\'').next()?.parse().ok());
    one.chain(lists(condition).into_iter().flatten()).collect()
}

/// The lists of states that a text compares a state with.
fn lists(text: &str) -> Vec<States> {
    let lists =
        ["state IN (", "state NOT IN (", "'none') NOT IN ("].into_iter().flat_map(|start| text.split(start).skip(1));
    let words = lists.filter_map(|rest| rest.split(')').next());
    let states = words.filter_map(|words| words.split(", ").map(|word| word.trim_matches('\'').parse().ok()).collect());
    states.collect()
}
