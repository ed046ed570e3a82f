//! One text, compiled with all that it includes, and its rendering.

use std::panic::{AssertUnwindSafe, catch_unwind};

use handlebars::{Context, Handlebars, RenderContext, RenderError, RenderErrorReason, Renderable, Template, no_escape};

use super::{
    Kind, TemplateError,
    budget::{Budget, Capped, Each, Tick},
    include::{Closure, Reading},
    parse::TICK,
};

/// A compiled text.
pub(super) struct Unit {
    main: Template,
    registry: Handlebars<'static>,
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
        let mut registry = Handlebars::new();
        registry.set_strict_mode(true);
        registry.unregister_helper("log");
        registry.unregister_helper("raw");
        if reading.kind != Kind::Html {
            registry.register_escape_fn(no_escape);
        }
        for (name, parsed) in others {
            let mut template = parsed.template;
            template.name = Some(name.clone());
            registry.register_template(&name, template);
        }
        Ok(Self { main: main.template, registry })
    }

    /// Fills in what there is to fill in.
    pub(super) fn render(&self, context: &Context) -> Result<String, TemplateError> {
        let budget = Budget::new();
        // Whatever the engine does not expect of a template or of data, it is a fault of those and not the process's end.
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let mut rc = RenderContext::new(None);
            rc.register_local_helper("each", Box::new(Each(&budget)));
            rc.register_local_helper(TICK, Box::new(Tick(&budget)));
            let mut out = Capped { text: String::new(), budget: &budget };
            self.main.render(&self.registry, context, &mut rc, &mut out).map(|()| out.text)
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
