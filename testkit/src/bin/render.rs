//! Measures what rendering costs: a template that is compiled already, its first rendering, and one with a style sheet.
//! `cargo run --release -p posthaste-testkit --bin render`

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use content::template::{Template, TemplateSource, compile};
use domain::{Channel, contract::submission::Part};
use serde_json::{Value, json};

/// How long each is timed.
const TIME: Duration = Duration::from_secs(3);

fn template(subject: &str, text: &str, html: &str) -> Result<Template> {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let parts =
        [("default".to_owned(), Part { title: given(subject), message: given(text), html: given(html) })].into();
    let source = TemplateSource { name: "t".to_owned(), version: 1, category: None, variables: Vec::new(), parts };
    compile(vec![source]).pop().context("nothing was compiled")
}

fn measure(what: &str, template: &Template, channel: Channel, variables: &Value) -> Result<()> {
    template.render(channel, variables)?;
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < TIME {
        template.render(channel, variables)?;
        count += 1;
    }
    let each = begun.elapsed() / count;
    println!("{what}: {:.0} a second on one core, {each:?} each", 1.0 / each.as_secs_f64());
    Ok(())
}

fn main() -> Result<()> {
    let (subject, text) = (
        "Order #{{ order_id }} Confirmed",
        "Hello {{ customer_name }},\n\nYour order #{{ order_id }} for ${{ amount }} has been confirmed!",
    );
    let html = "<h1>Order Confirmed</h1><p>Hello {{ customer_name }},</p><p>Your order #{{ order_id }} for ${{ amount }} has been confirmed!</p>";
    let order = json!({"customer_name": "John Doe", "order_id": "12345", "amount": "99.99"});
    measure("title and text", &template(subject, text, "")?, Channel::Sms, &order)?;
    measure("a mail: subject, text, HTML", &template(subject, text, html)?, Channel::Email, &order)?;
    let rules: String = (0..30).map(|n| format!(".c{n} td, h{n} {{ color: #{n:06x}; padding: {n}px }}\n")).collect();
    let rows = "<table>{{#each rows}}<tr class=\"c1\"><td>{{name}}</td><td>{{price}}</td></tr>{{/each}}</table>";
    let styled = format!("<html><head><style>{rules}</style></head><body><h1>Hi {{{{name}}}}</h1>{rows}</body></html>");
    let plain = format!("<html><head></head><body><h1>Hi {{{{name}}}}</h1>{rows}</body></html>");
    let bill = json!({"name": "Ada", "rows": (0..20).map(|n| json!({"name": format!("item {n}"), "price": n})).collect::<Vec<_>>()});
    measure("a bill of 20 rows", &template("Bill", "Bill", &plain)?, Channel::Email, &bill)?;
    measure("the same with 30 rules of style", &template("Bill", "Bill", &styled)?, Channel::Email, &bill)?;
    let begun = Instant::now();
    for _ in 0..100 {
        template(subject, text, html)?.render(Channel::Email, &order)?;
    }
    println!("compiling and the first rendering of a mail: {:?}", begun.elapsed() / 100);
    Ok(())
}
