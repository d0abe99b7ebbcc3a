//! The transform that was found, with marks where a value is at the end of its range.

use maud::{Markup, html};
use proto::{ColourTransform, Transform};

use crate::export::COLOURS;
use crate::format::{minus, unsigned_zero};

/// Distance to an end of the range at which a value counts as being there.
const AT_LIMIT: f64 = 1e-6;

/// Name, values and range of a part of a transform.
type Part<'a> = (&'static str, &'a [f64], Option<(f64, f64)>);

pub fn list(transform: &Transform) -> Markup {
    html! { dl { @for part in parts(transform) { (row(part)) } } }
}

pub fn has_limit(transform: &Transform) -> bool {
    parts(transform).iter().any(|(_, values, limits)| reached(values, *limits).is_some())
}

fn parts(Transform { scale, shift, rotation, perspective, colour }: &Transform) -> Vec<Part<'_>> {
    let scales = if scale[0] == scale[1] { &scale[..1] } else { &scale[..] };
    let mut parts = vec![("scale", scales, Some(Transform::SCALE_LIMITS)), ("shift", &shift[..], Some(Transform::SHIFT_LIMITS))];
    if *rotation != 0.0 {
        // An angle has no ends.
        parts.push(("rotation in degrees", std::slice::from_ref(rotation), None));
    }
    if *perspective != [0.0, 0.0] {
        parts.push(("perspective", &perspective[..], Some(Transform::PERSPECTIVE_LIMITS)));
    }
    parts.extend(colour.iter().map(|(colour, value)| {
        let name = COLOURS.iter().find(|(_, known)| known == colour).expect("every colour has a name").0;
        // A hue is a turn and has no ends.
        let limits = (*colour != ColourTransform::Hue).then_some(Transform::FACTOR_LIMITS);
        (name, std::slice::from_ref(value), limits)
    }));
    parts
}

fn row((name, values, limits): Part) -> Markup {
    let numbers: Vec<String> = values.iter().map(|v| unsigned_zero(*v)).collect();
    html! {
        div {
            dt { (name) }
            dd {
                (numbers.join(", "))
                @if let Some((low, high)) = reached(values, limits) {
                    " " span.tag title={ "the search may use " (minus(&low.to_string())) " to " (high) } { "limit" }
                }
            }
        }
    }
}

/// The range, if a value is at one of its ends.
fn reached(values: &[f64], limits: Option<(f64, f64)>) -> Option<(f64, f64)> {
    limits.filter(|(low, high)| values.iter().any(|v| *v <= low + AT_LIMIT || *v >= high - AT_LIMIT))
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
            ..Transform::IDENTITY
        };
        let marks = |t: &Transform| list(t).into_string().matches("limit</span>").count();
        let transforms = [transform(0.1, 1.2), transform(0.1, 0.667), transform(-1.0, 1.5)];
        assert_eq!(transforms.map(|t| (marks(&t), has_limit(&t))), [(0, false), (1, true), (2, true)]);
    }
}
