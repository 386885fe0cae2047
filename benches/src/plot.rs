//! Throughput and p99 against the number of groups, as SVG.

use crate::cluster::BoxError;
use plotters::prelude::*;

/// One run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Groups.
    pub groups: f64,
    /// Proposals under way per group.
    pub inflight: f64,
    /// Completed proposals per second.
    pub per_s: f64,
    /// 99th percentile of latency, in milliseconds.
    pub p99_ms: f64,
}

/// The size of the picture, in pixels.
const SIZE: (u32, u32) = (720, 420);

/// The picture, as SVG text. Both axes are logarithmic.
///
/// # Errors
/// When it can't be drawn, as with no points at all.
pub fn throughput_by_groups(points: &[Point]) -> Result<String, BoxError> {
    let mut points = points.to_vec();
    points.sort_by(|a, b| a.groups.total_cmp(&b.groups));
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Err("no run of proposals to plot".into());
    };
    let most = |value: fn(&Point) -> f64| points.iter().map(value).fold(1.0, f64::max) * 2.0;
    let groups = (first.groups * 0.8).max(0.8)..last.groups * 1.25;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("Proposals of 16 bytes, three hosts, fsync on", ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .right_y_label_area_size(60)
            .build_cartesian_2d(groups.clone().log_scale(), (1e3..most(|p| p.per_s)).log_scale())?
            .set_secondary_coord(groups.log_scale(), (0.1..most(|p| p.p99_ms)).log_scale());
        chart.configure_mesh().x_desc("groups").y_desc("proposals per second").draw()?;
        chart.configure_secondary_axes().y_desc("p99, ms").draw()?;
        chart
            .draw_series(LineSeries::new(points.iter().map(|p| (p.groups, p.per_s)), &BLUE).point_size(4))?
            .label("proposals per second")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLUE));
        chart
            .draw_secondary_series(LineSeries::new(points.iter().map(|p| (p.groups, p.p99_ms)), &RED).point_size(4))?
            .label("p99")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], RED));
        chart.configure_series_labels().position(SeriesLabelPosition::LowerLeft).border_style(BLACK).draw()?;
        area.present()?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_names_both_axes_and_has_a_mark_for_every_point() {
        let point = |groups, per_s| Point { groups, inflight: 16.0, per_s, p99_ms: 9.0 };
        let svg = throughput_by_groups(&[point(1000.0, 7e5), point(48.0, 3e6)]).expect("drawn");
        assert!(svg.starts_with("<svg") && svg.contains("p99, ms") && svg.contains("groups"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 4, "two points in two lines: {svg}");
        assert!(throughput_by_groups(&[]).is_err());
    }
}
