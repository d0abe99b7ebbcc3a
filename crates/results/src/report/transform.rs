//! The transform that was found, with marks where a value is at the end of its range.

use maud::{Markup, html};
use proto::{ColourTransform, Transform};

use crate::format::{minus, unsigned_zero};

// Ends of the ranges that the search stays in: those of `projector::transform`, which links torch. A hue is a turn and has none.
/// Distance to an end at which a value counts as being there.
const AT_LIMIT: f64 = 1e-6;

pub fn list(Transform { scale, shift, colour }: &Transform) -> Markup {
    let scales = if scale[0] == scale[1] { &scale[..1] } else { scale };
    html! {
        dl {
            (row("scale", scales, Some(Transform::SCALE_LIMITS)))
            (row("shift", shift, Some(Transform::SHIFT_LIMITS)))
            @for (colour, value) in colour { (row(colour_name(*colour), &[*value], colour_limits(*colour))) }
        }
    }
}

fn row(name: &str, values: &[f64], limits: Option<(f64, f64)>) -> Markup {
    let numbers: Vec<String> = values.iter().map(|v| unsigned_zero(*v)).collect();
    let limits = limits.filter(|limits| values.iter().any(|v| at_limit(*v, *limits)));
    html! {
        div {
            dt { (name) }
            dd {
                (numbers.join(", "))
                @if let Some((low, high)) = limits {
                    " " span.tag title={ "the search may use " (minus(&low.to_string())) " to " (high) } { "limit" }
                }
            }
        }
    }
}

pub fn has_limit(transform: &Transform) -> bool {
    transform.scale.iter().any(|v| at_limit(*v, Transform::SCALE_LIMITS))
        || transform.shift.iter().any(|v| at_limit(*v, Transform::SHIFT_LIMITS))
        || transform.colour.iter().any(|(c, v)| colour_limits(*c).is_some_and(|limits| at_limit(*v, limits)))
}

fn at_limit(value: f64, (low, high): (f64, f64)) -> bool {
    value <= low + AT_LIMIT || value >= high - AT_LIMIT
}

fn colour_limits(colour: ColourTransform) -> Option<(f64, f64)> {
    (colour != ColourTransform::Hue).then_some(Transform::FACTOR_LIMITS)
}

fn colour_name(colour: ColourTransform) -> &'static str {
    match colour {
        ColourTransform::Brightness => "brightness",
        ColourTransform::Contrast => "contrast",
        ColourTransform::Saturation => "saturation",
        ColourTransform::Hue => "hue",
        ColourTransform::Gamma => "gamma",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_the_end_of_its_range_is_marked() {
        let transform = |shift, brightness| Transform {
            scale: [1.0, 1.0],
            shift: [shift, 0.0],
            colour: vec![(ColourTransform::Brightness, brightness), (ColourTransform::Hue, -0.5)],
        };
        let marks = |t: &Transform| list(t).into_string().matches("limit</span>").count();
        assert_eq!(
            [transform(0.1, 1.2), transform(0.1, 0.667), transform(-1.0, 1.5)].map(|t| (marks(&t), has_limit(&t))),
            [(0, false), (1, true), (2, true)]
        );
    }
}
