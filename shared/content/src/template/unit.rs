//! One text, compiled with all its includes, and its rendering.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
    time::Instant,
};

use handlebars::{Context, Handlebars, RenderContext, RenderError, RenderErrorReason, Renderable, no_escape};

use super::{
    Kind, TemplateError,
    budget::{Budget, Capped, Each, Tick},
    include::{Closure, Reading},
    parse::{Parsed, TICK},
};

/// A compiled text. Its includes are shared with the other texts that include them.
pub(super) struct Unit {
    main: Arc<Parsed>,
    others: HashMap<String, Arc<Parsed>>,
    engine: &'static Handlebars<'static>,
}

static PLAIN: LazyLock<Handlebars<'static>> = LazyLock::new(|| {
    let mut engine = engine();
    engine.register_escape_fn(no_escape);
    engine
});
static ESCAPING: LazyLock<Handlebars<'static>> = LazyLock::new(engine);

fn engine() -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine.unregister_helper("log");
    engine.unregister_helper("raw");
    engine
}

impl std::fmt::Debug for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unit(…)")
    }
}

impl Unit {
    /// Compiles the text `text` of the template `name`.
    pub(super) fn build(reading: &Reading<'_>, name: &str, text: &str) -> Result<Self, String> {
        let Closure { main, others } = reading.closure(name, text)?;
        let engine = if reading.kind == Kind::Html { &*ESCAPING } else { &*PLAIN };
        Ok(Self { main, others, engine })
    }

    /// Renders the text, until `until` at the latest.
    pub(super) fn render(&self, context: &Context, until: Instant) -> Result<String, TemplateError> {
        let budget = Budget::new(until);
        // If the engine panics on a template or on data, this is reported as a fault of these and does not end the
        // process.
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let mut rc = RenderContext::new(None);
            if let Some(block) = rc.block_mut() {
                self.others.iter().for_each(|(name, of)| block.set_local_partial(name.clone(), &of.template));
            }
            rc.register_local_helper("each", Box::new(Each(&budget)));
            rc.register_local_helper(TICK, Box::new(Tick(&budget)));
            let mut out = Capped { text: String::new(), budget: &budget };
            self.main.template.render(self.engine, context, &mut rc, &mut out).map(|()| out.text)
        }));
        let rendered = rendered.map_err(|_| TemplateError::Source("it cannot be rendered".to_owned()))?;
        rendered.map_err(|error| match budget.spent() {
            Some(why) => TemplateError::TooLarge(why.to_owned()),
            None => told(&error),
        })
    }
}

fn told(error: &RenderError) -> TemplateError {
    match error.reason() {
        RenderErrorReason::MissingVariable(Some(path)) => TemplateError::Missing(path.clone()),
        RenderErrorReason::MissingVariable(None) => TemplateError::Missing("what `lookup` asks for".to_owned()),
        RenderErrorReason::InvalidJsonIndex(key) => TemplateError::Missing(key.clone()),
        reason => {
            let place = |line: usize| {
                let of = error.template_name.as_ref().map_or(String::new(), |name| format!("template `{name}`, "));
                format!("{of}line {line}: ")
            };
            TemplateError::Source(format!("{}{reason}", error.line_no.map_or(String::new(), place)))
        }
    }
}
