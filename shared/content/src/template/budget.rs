//! The limits of one rendering: items, bytes, time.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use handlebars::{
    BlockContext, BlockParams, Context, Handlebars, Helper, HelperDef, HelperResult, Output, RenderContext,
    RenderError, RenderErrorReason, Renderable,
};
use serde_json::Value;

use super::OUTPUT_BYTES_MAX;

/// The longest time for one text.
const TIME_MAX: Duration = Duration::from_millis(200);
/// The items of all `each` blocks of one text together.
const ITEMS_MAX: usize = 100_000;
/// Steps between two checks of the clock.
const CLOCK_EVERY: usize = 8;

/// The rest of the budget of one rendering.
pub(super) struct Budget {
    until: Instant,
    steps: AtomicUsize,
    items: AtomicUsize,
    spent: OnceLock<&'static str>,
}

impl Budget {
    pub(super) fn new(until: Instant) -> Self {
        Self {
            until: until.min(Instant::now() + TIME_MAX),
            steps: AtomicUsize::new(0),
            items: AtomicUsize::new(0),
            spent: OnceLock::new(),
        }
    }

    /// The limit that was reached, if any.
    pub(super) fn spent(&self) -> Option<&'static str> {
        self.spent.get().copied()
    }

    fn stop(&self, why: &'static str) -> io::Error {
        io::Error::other(*self.spent.get_or_init(|| why))
    }

    fn step(&self) -> io::Result<()> {
        let steps = self.steps.fetch_add(1, Ordering::Relaxed);
        if steps.is_multiple_of(CLOCK_EVERY) && Instant::now() > self.until {
            return Err(self.stop("it takes too long to render"));
        }
        Ok(())
    }

    fn item(&self) -> io::Result<()> {
        if self.items.fetch_add(1, Ordering::Relaxed) >= ITEMS_MAX {
            return Err(self.stop("it goes through more than 100,000 items"));
        }
        self.step()
    }
}

/// Collects the output, up to a limit.
pub(super) struct Capped<'a> {
    pub(super) text: String,
    pub(super) budget: &'a Budget,
}

impl Output for Capped<'_> {
    fn write(&mut self, piece: &str) -> io::Result<()> {
        self.budget.step()?;
        if self.text.len() + piece.len() > OUTPUT_BYTES_MAX {
            return Err(self.budget.stop("it becomes longer than 1 MiB"));
        }
        self.text.push_str(piece);
        Ok(())
    }
}

/// Checks whether the rendering may continue, and writes nothing.
pub(super) struct Tick<'a>(pub(super) &'a Budget);

impl HelperDef for Tick<'_> {
    fn call<'reg: 'rc, 'rc>(
        &self,
        _: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
        _: &mut dyn Output,
    ) -> HelperResult {
        self.0.step().map_err(RenderError::from)
    }
}

/// The usual `each`, with a count of its items.
pub(super) struct Each<'a>(pub(super) &'a Budget);

impl HelperDef for Each<'_> {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        registry: &'reg Handlebars<'reg>,
        context: &'rc Context,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let list = helper.param(0).ok_or(RenderErrorReason::ParamNotFoundForIndex("each", 0))?;
        let items: Vec<(Value, &Value)> = match list.value() {
            Value::Array(items) => items.iter().enumerate().map(|(index, item)| (index.into(), item)).collect(),
            Value::Object(members) => members.iter().map(|(key, item)| (key.as_str().into(), item)).collect(),
            _ => Vec::new(),
        };
        let Some(template) = helper.template().filter(|_| !items.is_empty()) else {
            return match helper.inverse() {
                Some(inverse) => inverse.render(registry, context, rc, out),
                None if list.is_value_missing() => Err(RenderError::strict_error(list.relative_path())),
                None => Ok(()),
            };
        };
        rc.push_block(BlockContext::new());
        let count = items.len();
        for (index, (key, item)) in items.into_iter().enumerate() {
            self.0.item()?;
            if let Some(block) = rc.block_mut() {
                block.set_local_var("first", (index == 0).into());
                block.set_local_var("last", (index + 1 == count).into());
                block.set_local_var("index", index.into());
                block.set_local_var("key", key.clone());
                enter(block, helper, &key, item)?;
            }
            template.render(registry, context, rc, out)?;
        }
        rc.pop_block();
        Ok(())
    }
}

/// Points a block at one item, by its path if it has one: then nothing is copied.
fn enter<'rc>(
    block: &mut BlockContext<'rc>,
    helper: &Helper<'rc>,
    key: &Value,
    item: &Value,
) -> Result<(), RenderError> {
    let path = helper.param(0).and_then(|list| list.context_path());
    match path {
        Some(path) => {
            let step = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            *block.base_path_mut() = path.iter().cloned().chain([step]).collect();
        }
        None => block.set_base_value(item.clone()),
    }
    let (name, key_name) = match (helper.block_param(), helper.block_param_pair()) {
        (Some(name), _) => (name, None),
        (None, Some((name, key_name))) => (name, Some(key_name)),
        (None, None) => return Ok(()),
    };
    let mut params = BlockParams::new();
    match path {
        Some(_) => params.add_path(name, Vec::new())?,
        None => params.add_value(name, item.clone())?,
    }
    if let Some(key_name) = key_name {
        params.add_value(key_name, key.clone())?;
    }
    block.set_block_params(params);
    Ok(())
}
