//! What a terminal shows, as a picture for the documents: SVG with one line of text per line.
//!
//! Knows nothing of what is shown. The letters stay text: they can be searched, copied and compared.

/// Width of a letter and height of a line, of a font of 14 pixels.
const LETTER: (f64, f64) = (8.4, 18.0);
/// Between the text and the picture's edges.
const MARGIN: f64 = 12.0;
/// Background, letters, and the lines that stand out.
const COLOURS: [&str; 3] = ["#16181d", "#d5d9e0", "#ffffff"];

/// A picture of these lines; those whose numbers are in `bold` stand out.
pub fn svg(lines: &[&str], bold: &[usize]) -> String {
    let letters = lines.iter().map(|line| line.chars().count()).max().unwrap_or_default();
    #[allow(clippy::cast_precision_loss, reason = "a terminal has some hundreds of columns")]
    let (width, height) = (letters as f64 * LETTER.0 + 2.0 * MARGIN, lines.len() as f64 * LETTER.1 + 2.0 * MARGIN);
    let [background, plain, bright] = COLOURS;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{background}\"/>\n"
    );
    let mut baseline = MARGIN + LETTER.1 * 0.75;
    for (number, line) in lines.iter().enumerate() {
        let (colour, weight) = if bold.contains(&number) { (bright, " font-weight=\"bold\"") } else { (plain, "") };
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        let length = line.chars().count() as f64 * LETTER.0;
        // Every font is stretched to the same columns.
        let length = if line.is_empty() { String::new() } else { format!(" textLength=\"{length:.1}\"") };
        picture += &format!(
            "<text x=\"{MARGIN}\" y=\"{baseline:.1}\" fill=\"{colour}\"{weight}{length} xml:space=\"preserve\">{}</text>\n",
            escaped(line)
        );
        baseline += LETTER.1;
    }
    picture + "</svg>\n"
}

fn escaped(line: &str) -> String {
    line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_stands_in_the_picture_as_it_is() {
        let picture = svg(&["head", "", "a <b> & c  1"], &[0]);
        let texts: Vec<&str> = picture.lines().filter(|line| line.starts_with("<text")).collect();
        assert_eq!(texts.len(), 3);
        assert!(texts[0].contains("bold") && texts[0].ends_with(">head</text>"), "{picture}");
        assert!(texts[2].ends_with(">a &lt;b&gt; &amp; c  1</text>") && !texts[2].contains("bold"), "{picture}");
        // 12 letters of 8.4 and two margins of 12; three lines of 18.
        assert!(picture.contains("viewBox=\"0 0 125 78\""), "{picture}");
    }
}
