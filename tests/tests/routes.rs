//! Each route is called by an end-to-end test. The rule reads the sources of the tests. Planted sources show what it
//! accepts and what it notices.
//!
//! * A call is `.get(PATH)`, `.post(PATH)`, `.put(PATH)`, `.delete(PATH)`, `.head(PATH)` or `.request(METHOD, PATH)`.
//! * `PATH` begins with `/` (only [`testkit::Api`] takes that) or with `http://127.0.0.1:{}/`, a process of the stack.
//!   A URL that each process serves does not count: the process may be a worker.
//! * `METHOD` and `PATH` are literals, constants of the file, or `format!` of those. The rule follows them through
//!   `let`, `for` over a list in the source, the functions of the file (arguments and results) and the fields of what
//!   they make. Anything else is a hole.
//! * A path belongs to the first route that fits, as in the router. A hole fits a parameter, never a fixed segment.
//!   The query does not count.
//! * A function of the harness counts if a test names it. The oracles do not count: `cargo xtask test` leaves them out.
//!
//! A test that takes its paths from the document of the API calls every route but shows little of each: it does not
//! count. A call that is refused counts: the rule does not read answers.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use ingest::routes::TABLE;

/// The beginning of a URL of a process of the stack.
const PROCESS: &str = "http://127.0.0.1:{}";
/// Paths that workers and schedulers serve as well.
const EVERYWHERE: [&str; 4] = ["/health", "/health/live", "/health/ready", "/metrics"];
/// Methods of a string or a list that do not change what it says.
const SAME: [&str; 7] = ["as_str", "clone", "copied", "into_iter", "iter", "to_owned", "to_string"];

type Routes<'a> = &'a [(&'a str, &'a [&'a str])];

/// A method and a path whose holes are `{}`.
type Call = (String, String);

#[test]
fn every_route_is_called_by_a_test() {
    let missing = missing(TABLE, &real_calls());
    assert!(missing.is_empty(), "no test calls\n{}", missing.join("\n"));
}

#[test]
fn a_planted_route_is_noticed_among_the_real_calls() {
    let planted: Routes = &[("/api/messages", &["GET", "DELETE"]), ("/api/nobody", &["GET"])];
    assert_eq!(missing(planted, &real_calls()), ["DELETE /api/messages", "GET /api/nobody"]);
}

#[test]
fn a_route_that_no_test_calls_is_noticed() {
    let table: Routes = &[("/a", &["GET", "POST"]), ("/a/b", &["GET"]), ("/a/{id}", &["GET", "PUT"]), ("/c", &["GET"])];
    let missing = |test: &str| missing(table, &calls(&[test.to_owned()], &[]));
    assert_eq!(missing(""), ["GET /a", "POST /a", "GET /a/b", "GET /a/{id}", "PUT /a/{id}", "GET /c"]);
    let all = r#"
        const A: &str = "/a";
        async fn put(api: &Api, path: &str) { api.request(Method::PUT, path, &[], None).await }
        #[tokio::test]
        async fn all() {
            let one = format!("{A}/{}?x=1", id);
            api.get(A).await; // .get("/b")
            put(&api, &one).await;
            let list = [(Method::GET, "/a/b"), (Method::POST, "/a")];
            for (method, path) in list { api.request(method.clone(), path).await; }
            for page in ["/c", "/a/1"] { reqwest::get(format!("http://127.0.0.1:{}{page}", port)).await; }
        }"#;
    assert!(missing(all).is_empty(), "{:?}", missing(all));
    assert_eq!(missing(&all.replace("\"/c\", ", "")), ["GET /c"]);
    assert_eq!(missing(&all.replace("(Method::POST, \"/a\")", "(Method::POST, \"/c\")")), ["POST /a"]);
    assert_eq!(missing(&all.replace("put(&api, &one)", "put(&api, A)")), ["PUT /a/{id}"]);
}

#[test]
fn what_may_lead_elsewhere_is_no_call() {
    let seen = |body: &str| calls(&[format!("async fn test() {{ {body} }}")], &[]);
    let call = |method: &str, path: &str| BTreeSet::from([(method.to_owned(), path.to_owned())]);
    assert_eq!(seen(r#"api.get(&format!("/a/{id}/{}", "b")).await"#), call("GET", "/a/{}/b"));
    let made = r#"} async fn make() -> Result<(String, Value)> { let a = 1; Ok((format!("/a/{a}"), made)) "#;
    assert_eq!(seen(&format!("let (a, _) = make(&api, 1).await?; api.get(&a).await; {made}")), call("GET", "/a/{}"));
    let made = r#"} async fn make() -> Result<Scene> { let path = format!("/a/{}", id); Ok(Scene { path, made }) }
        impl Scene { async fn post(&self, word: &str) { self.api.post(&format!("{}/{word}", self.path)).await } "#;
    assert_eq!(seen(&format!(r#"let scene = make().await?; scene.post("b").await; {made}"#)), {
        BTreeSet::from([("POST".to_owned(), "/a/{}/b".to_owned()), ("POST".to_owned(), "/a/{}/{}".to_owned())])
    });
    assert_eq!(seen(r#"let a = "/a"; list.map(|a| api.get(a)); api.post(a, &json!({}))"#), call("POST", "/a"));
    for body in [
        r#"sink.reply_to("/a", Reply::ok())"#,
        r#"api.request(method, "/a", &[], None)"#,
        r#"api.get(&format!("{base}/a"))"#,
        r#"api.get(&path.replace("x", "/a"))"#,
        r#"{ let a = "/a"; } api.get(a)"#,
        r#"assert_eq!(text, "api.get(\"/a\")")"#,
        r#"reqwest::get("http://127.0.0.1:{}/metrics")"#,
        r#"reqwest::get("http://example.com/a")"#,
    ] {
        assert!(seen(body).is_empty(), "{body}");
    }
    let table: Routes = &[("/a/{id}/start", &["POST"])];
    assert_eq!(missing(table, &seen(r#"api.post(&format!("/a/{id}/{word}"), &body)"#)), ["POST /a/{id}/start"]);
    let harness = ["fn used(api: &Api) { api.get(\"/a\") } fn unused(api: &Api) { api.get(\"/b\") }".to_owned()];
    assert_eq!(calls(&["fn test() { used(&api) }".to_owned()], &harness), call("GET", "/a"));
}

fn real_calls() -> BTreeSet<Call> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (tests, harness) = (sources(&root.join("tests"), true), sources(&root.join("../testkit/src"), false));
    assert!(tests.len() > 30 && harness.len() > 15, "{} tests, {} files of the harness", tests.len(), harness.len());
    calls(&tests, &harness)
}

/// The sources in a folder and, if `deep`, below it, without this file and the oracles.
fn sources(folder: &Path, deep: bool) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() && deep && !path.ends_with("oracles") {
            found.extend(sources(&path, deep));
        } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests/routes.rs") {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
    found
}

/// The routes that no call leads to.
fn missing(table: Routes, calls: &BTreeSet<Call>) -> Vec<String> {
    let first = |path: &str| table.iter().find(|(pattern, _)| fits(pattern, path)).map(|(pattern, _)| *pattern);
    let called: BTreeSet<(&str, &str)> =
        calls.iter().filter_map(|(method, path)| Some((first(path)?, method.as_str()))).collect();
    let routes = table.iter().flat_map(|(path, methods)| methods.iter().map(|method| (*path, *method)));
    routes.filter(|route| !called.contains(route)).map(|(path, method)| format!("{method} {path}")).collect()
}

fn fits(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    let same = |(wanted, part): (&&str, &&str)| if wanted.starts_with('{') { !part.is_empty() } else { wanted == part };
    pattern.len() == path.len() && pattern.iter().zip(&path).all(same)
}

/// The calls of the tests and of those functions of the harness that a test names.
fn calls(tests: &[String], harness: &[String]) -> BTreeSet<Call> {
    let tests: Vec<Vec<Token>> = tests.iter().map(|source| tokens(source)).collect();
    let words = tests.iter().flatten().filter_map(|token| match token {
        Token::Word(word) => Some(word.as_str()),
        _ => None,
    });
    let named: BTreeSet<&str> = words.collect();
    let mut found = BTreeSet::new();
    for code in &tests {
        found.extend(Reader::new(code).read(|_| true));
    }
    for source in harness {
        found.extend(Reader::new(&tokens(source)).read(|name| named.contains(name)));
    }
    found
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Token {
    Word(String),
    /// A literal string, without its quotes.
    Text(String),
    Sign(char),
}

/// The tokens of a source, without comments, lifetimes and characters.
fn tokens(source: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let after = &rest[word..];
        let hashes = after.len() - after.trim_start_matches('#').len();
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if ["r", "br"].contains(&&rest[..word]) && after[hashes..].starts_with('"') {
            let (text, end) = after[hashes + 1..].split_once(&format!("\"{}", "#".repeat(hashes))).unwrap();
            found.push(Token::Text(text.to_owned()));
            rest = end;
        } else if word > 0 {
            found.push(Token::Word(rest[..word].to_owned()));
            rest = after;
        } else if next == '"' {
            let end = end_of_text(rest);
            found.push(Token::Text(rest[1..end].to_owned()));
            rest = &rest[end + 1..];
        } else if next == '\'' {
            rest = after_quote(&rest[1..]);
        } else {
            if !next.is_whitespace() {
                found.push(Token::Sign(next));
            }
            rest = &rest[next.len_utf8()..];
        }
    }
    found
}

/// The place of the quote that ends the literal at the start of `rest`.
fn end_of_text(rest: &str) -> usize {
    let mut is_escaped = true;
    let end = rest.find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    end.unwrap()
}

/// The rest after a character or a lifetime whose first quote is gone.
fn after_quote(rest: &str) -> &str {
    let mut chars = rest.char_indices();
    let (_, first) = chars.next().unwrap();
    let from = if first == '\\' { 2 } else { first.len_utf8() };
    match rest[from..].find('\'') {
        Some(0) => &rest[from + 1..],
        Some(end) if first == '\\' => &rest[from + end + 1..],
        _ => rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
    }
}

/// The known value of an expression.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unknown,
    Text(String),
    Method(String),
    /// A list or a tuple.
    List(Vec<Value>),
}

/// Names with their values; the last one holds. `name()` is the result of a function, `.name` a field.
type Scope = Vec<(String, Value)>;

/// Functions may call functions that call functions.
const PASSES: usize = 3;

struct Function<'a> {
    name: &'a str,
    takes_self: bool,
    parameters: Vec<&'a str>,
    body: &'a [Token],
}

/// Reads one file.
struct Reader<'a> {
    functions: Vec<Function<'a>>,
    constants: Scope,
    /// The functions that are being read.
    inside: Vec<&'a str>,
    calls: BTreeSet<Call>,
}

impl<'a> Reader<'a> {
    fn new(code: &'a [Token]) -> Self {
        let (mut functions, mut constants) = (Vec::new(), Scope::new());
        for (at, token) in code.iter().enumerate() {
            let rest = &code[at + 1..];
            if is_word(Some(token), &["fn"]) {
                functions.extend(function(rest));
            } else if let (true, Some(Token::Word(name))) = (is_word(Some(token), &["const"]), rest.first()) {
                let expression = rest.get(find(rest, '=') + 1..find(rest, ';')).unwrap_or_default();
                constants.push((name.clone(), value(expression, &constants)));
            }
        }
        for _ in 0..PASSES {
            for function in &functions {
                results(function, &mut constants);
            }
        }
        Self { functions, constants, inside: Vec::new(), calls: BTreeSet::new() }
    }

    /// The calls of the functions that `counts` accepts, with what is known about their arguments.
    fn read(mut self, counts: impl Fn(&str) -> bool) -> BTreeSet<Call> {
        for at in 0..self.functions.len() {
            if counts(self.functions[at].name) {
                self.enter(at, &[]);
            }
        }
        self.calls
    }

    fn enter(&mut self, at: usize, arguments: &[Value]) {
        let function = &self.functions[at];
        let (mut scope, name, body) = (self.constants.clone(), function.name, function.body);
        for (at, parameter) in function.parameters.iter().enumerate() {
            scope.push(((*parameter).to_owned(), arguments.get(at).cloned().unwrap_or(Value::Unknown)));
        }
        self.inside.push(name);
        self.walk(body, &mut scope);
        self.inside.pop();
    }

    /// Follows the statements of a block, or the parts of an expression. Names end with it.
    fn walk(&mut self, code: &'a [Token], scope: &mut Scope) {
        let outer = scope.len();
        let mut at = 0;
        while at < code.len() {
            let before = at.checked_sub(1).and_then(|before| code.get(before));
            at = match &code[at] {
                Token::Sign('(' | '[' | '{') => {
                    let end = closing(code, at);
                    self.walk(&code[at + 1..end], scope);
                    end + 1
                }
                Token::Sign('|') if !matches!(before, Some(Token::Text(_))) => at + 1 + shadow(&code[at + 1..], scope),
                Token::Word(word) if word == "let" && !is_word(before, &["if", "while"]) => {
                    at + self.bind(&code[at..], scope)
                }
                Token::Word(word) if word == "for" => at + self.repeat(&code[at..], scope),
                Token::Word(word) => {
                    if code.get(at + 1) == Some(&Token::Sign('(')) && !is_word(before, &["fn"]) {
                        let arguments = parts(&code[at + 2..closing(code, at + 1)]);
                        let values: Vec<Value> = arguments.into_iter().map(|part| value(part, scope)).collect();
                        self.call(word, before, &values);
                    }
                    at + 1
                }
                _ => at + 1,
            };
        }
        scope.truncate(outer);
    }

    /// `let PATTERN = EXPRESSION;`: its length.
    fn bind(&mut self, code: &'a [Token], scope: &mut Scope) -> usize {
        let (equals, end) = (find(code, '='), find(code, ';'));
        if equals >= end {
            return 1;
        }
        let expression = &code[equals + 1..end];
        self.walk(expression, scope);
        match_pattern(&code[1..equals], value(expression, scope), scope);
        end
    }

    /// `for PATTERN in EXPRESSION { … }`, once for each known item: its length.
    fn repeat(&mut self, code: &'a [Token], scope: &mut Scope) -> usize {
        let start = find(code, '{');
        let Some(word) = code.iter().take(start).position(|token| is_word(Some(token), &["in"])) else { return 1 };
        let (expression, end) = (&code[word + 1..start], closing(code, start));
        self.walk(expression, scope);
        let items = match value(expression, scope) {
            Value::List(items) => items,
            _ => vec![Value::Unknown],
        };
        let outer = scope.len();
        for item in items {
            match_pattern(&code[1..word], item, scope);
            self.walk(&code[start + 1..end], scope);
            scope.truncate(outer);
        }
        end + 1
    }

    fn call(&mut self, name: &'a str, before: Option<&Token>, arguments: &[Value]) {
        match (before, name, arguments) {
            (Some(Token::Sign('.')), "request", [Value::Method(method), Value::Text(path), ..]) => {
                self.record(method, path);
            }
            (Some(Token::Sign('.' | ':')), "get" | "post" | "put" | "delete" | "head", [Value::Text(path), ..]) => {
                self.record(&name.to_uppercase(), path);
            }
            _ => {}
        }
        let is_method = before == Some(&Token::Sign('.'));
        if arguments.iter().any(|value| *value != Value::Unknown) && !self.inside.contains(&name) {
            let own = |at: &usize| self.functions[*at].name == name && self.functions[*at].takes_self == is_method;
            for at in (0..self.functions.len()).filter(own).collect::<Vec<_>>() {
                self.enter(at, arguments);
            }
        }
    }

    fn record(&mut self, method: &str, path: &str) {
        let path = path.split('?').next().unwrap_or_default();
        let own = path.strip_prefix(PROCESS).filter(|path| !EVERYWHERE.contains(path)).unwrap_or(path);
        if own.starts_with('/') {
            self.calls.insert((method.to_owned(), own.to_owned()));
        }
    }
}

/// The function at whose name `code` begins, if it has a body.
fn function(code: &[Token]) -> Option<Function<'_>> {
    let Some(Token::Word(name)) = code.first() else { return None };
    let (mut start, mut depth) = (1, 0);
    while depth > 0 || code.get(start)? != &Token::Sign('(') {
        match code.get(start)? {
            Token::Sign('<') => depth += 1,
            Token::Sign('>') if code[start - 1] != Token::Sign('-') => depth -= 1,
            _ => {}
        }
        start += 1;
    }
    let (end, rest) = (closing(code, start), &code[closing(code, start)..]);
    let body = find(rest, '{');
    if body >= find(rest, ';') {
        return None;
    }
    let listed = parts(&code[start + 1..end]);
    let takes_self = listed.first().is_some_and(|part| is_word(part.last(), &["self"]));
    // A part without a colon is the rest of a type with a comma.
    let parameters = listed.into_iter().filter_map(|part| match part {
        [Token::Word(word), Token::Word(name), Token::Sign(':'), ..] if word == "mut" => Some(name.as_str()),
        [Token::Word(name), Token::Sign(':'), ..] => Some(name.as_str()),
        _ => None,
    });
    Some(Function { name, takes_self, parameters: parameters.collect(), body: &rest[body + 1..closing(rest, body)] })
}

/// Learns what a function returns, and the fields of what it makes.
fn results(function: &Function, constants: &mut Scope) {
    let mut scope = constants.clone();
    scope.extend(function.parameters.iter().map(|name| ((*name).to_owned(), Value::Unknown)));
    let mut rest = function.body;
    while let Some(end) = Some(find(rest, ';')).filter(|end| *end < rest.len()) {
        if let ([Token::Word(word), statement @ ..], equals) = (&rest[..end], find(&rest[..end], '='))
            && word == "let"
            && equals < end
        {
            match_pattern(&statement[..equals - 1], value(&statement[equals..], &scope), &mut scope);
        }
        rest = &rest[end + 1..];
    }
    let made = match rest {
        [Token::Word(ok), Token::Sign('('), inner @ .., Token::Sign(')')] if ok == "Ok" => inner,
        last => last,
    };
    let mut learn = |name: String, value: Value| {
        if value != Value::Unknown && known(&name, constants) != value {
            constants.push((name, value));
        }
    };
    match made {
        [Token::Word(_), Token::Sign('{'), fields @ .., Token::Sign('}')] => {
            for field in parts(fields) {
                match field {
                    [Token::Word(name), Token::Sign(':'), field @ ..] => {
                        learn(format!(".{name}"), value(field, &scope))
                    }
                    [Token::Word(name)] => learn(format!(".{name}"), known(name, &scope)),
                    _ => {}
                }
            }
        }
        made if !function.takes_self => learn(format!("{}()", function.name), value(made, &scope)),
        _ => {}
    }
}

fn is_word(token: Option<&Token>, words: &[&str]) -> bool {
    matches!(token, Some(Token::Word(word)) if words.contains(&word.as_str()))
}

/// The place of the bracket that closes the one at `start`.
fn closing(code: &[Token], start: usize) -> usize {
    let mut depth = 0;
    for (at, token) in code.iter().enumerate().skip(start) {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// The first place of a sign outside of brackets, or the end.
fn find(code: &[Token], sign: char) -> usize {
    let mut at = 0;
    while at < code.len() && code[at] != Token::Sign(sign) {
        at = match code[at] {
            Token::Sign('(' | '[' | '{') => closing(code, at) + 1,
            _ => at + 1,
        };
    }
    at.min(code.len())
}

/// The parts between commas.
fn parts(code: &[Token]) -> Vec<&[Token]> {
    let (mut found, mut rest) = (Vec::new(), code);
    while !rest.is_empty() {
        let end = find(rest, ',');
        found.push(&rest[..end]);
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    found
}

/// Hides the names that a closure gives its parameters: their length. `||` and a pattern of `match` hide nothing.
fn shadow(code: &[Token], scope: &mut Scope) -> usize {
    let end = find(code, '|');
    let is_closure = end < code.len() && !code[..end].iter().any(|token| matches!(token, Token::Sign('=' | ';' | '.')));
    if !is_closure {
        return 0;
    }
    for part in parts(&code[..end]) {
        match_pattern(part, Value::Unknown, scope);
    }
    end + 1
}

/// Gives the names of a pattern their values.
fn match_pattern(pattern: &[Token], value: Value, scope: &mut Scope) {
    let pattern = &pattern[..find(pattern, ':')];
    let rest: Vec<&Token> =
        pattern.iter().filter(|token| **token != Token::Sign('&') && !is_word(Some(*token), &["mut"])).collect();
    match (rest.as_slice(), value) {
        ([Token::Word(name)], value) => scope.push((name.clone(), value)),
        ([Token::Sign('('), ..], Value::List(values)) => {
            let start = find(pattern, '(');
            for (part, value) in parts(&pattern[start + 1..closing(pattern, start)]).into_iter().zip(values) {
                match_pattern(part, value, scope);
            }
        }
        ([Token::Word(_), Token::Sign('{'), fields @ ..], _) => {
            for token in fields {
                if let Token::Word(name) = token {
                    scope.push((name.clone(), known(&format!(".{name}"), scope)));
                }
            }
        }
        (rest, _) => {
            for token in rest {
                if let Token::Word(name) = token {
                    scope.push((name.clone(), Value::Unknown));
                }
            }
        }
    }
}

/// The value of an expression.
fn value(code: &[Token], scope: &Scope) -> Value {
    let start = code.iter().position(|token| !matches!(token, Token::Sign('&' | '*'))).unwrap_or(code.len());
    let code = &code[start..];
    let (found, rest) = match code {
        [Token::Word(name), Token::Sign(':'), Token::Sign(':'), rest @ ..] if name == "reqwest" => {
            return value(rest, scope);
        }
        [Token::Word(name), Token::Sign(':'), Token::Sign(':'), Token::Word(method), rest @ ..] if name == "Method" => {
            (Value::Method(method.clone()), rest)
        }
        [Token::Word(name), Token::Sign('!'), Token::Sign('('), ..] if name == "format" => {
            let end = closing(code, 2);
            (formatted(&parts(&code[3..end]), scope), &code[end + 1..])
        }
        [Token::Word(name), Token::Sign('('), ..] => {
            (known(&format!("{name}()"), scope), &code[closing(code, 1) + 1..])
        }
        [Token::Word(_), Token::Sign('.'), Token::Word(field), rest @ ..]
            if field != "await" && rest.first() != Some(&Token::Sign('(')) =>
        {
            (known(&format!(".{field}"), scope), rest)
        }
        [Token::Word(name), rest @ ..] => (known(name, scope), rest),
        [Token::Text(text), rest @ ..] => (Value::Text(text.clone()), rest),
        [Token::Sign('(' | '['), ..] => {
            let end = closing(code, 0);
            let items = parts(&code[1..end]).into_iter().map(|part| value(part, scope));
            (Value::List(items.collect()), &code[end + 1..])
        }
        _ => return Value::Unknown,
    };
    if is_same(rest) { found } else { Value::Unknown }
}

fn known(name: &str, scope: &Scope) -> Value {
    scope.iter().rev().find(|(own, _)| own == name).map_or(Value::Unknown, |(_, value)| value.clone())
}

/// Whether what follows an expression leaves it as it is.
fn is_same(rest: &[Token]) -> bool {
    match rest {
        [] => true,
        [Token::Sign('?'), rest @ ..] => is_same(rest),
        [Token::Sign('.'), Token::Word(name), rest @ ..] if name == "await" => is_same(rest),
        [Token::Sign('.'), Token::Word(name), Token::Sign('('), Token::Sign(')'), rest @ ..] => {
            SAME.contains(&name.as_str()) && is_same(rest)
        }
        _ => false,
    }
}

/// The text of `format!`: what is not known is `{}`.
fn formatted(arguments: &[&[Token]], scope: &Scope) -> Value {
    let Some(([Token::Text(text)], arguments)) = arguments.split_first().map(|(first, rest)| (*first, rest)) else {
        return Value::Unknown;
    };
    let (mut made, mut rest, mut unnamed) = (String::new(), text.as_str(), arguments.iter());
    while let Some((plain, hole)) = rest.split_once('{') {
        let (name, after) = hole.split_once('}').unwrap_or((hole, ""));
        let filling = match name.split(':').next() {
            None | Some("") => unnamed.next().map_or(Value::Unknown, |argument| value(argument, scope)),
            Some(name) => known(name, scope),
        };
        made.push_str(plain);
        made.push_str(if let Value::Text(text) = &filling { text } else { "{}" });
        rest = after;
    }
    Value::Text(made + rest)
}
