//! The form of the scripts: comments, a command with arguments, input lines, `----`, the expected output.

/// One command and what it must print.
#[derive(Debug, Default)]
pub struct Case {
    pub line: usize,
    pub command: String,
    pub args: Vec<Arg>,
    pub input: String,
    pub expected: String,
}

/// `key`, `key=value` or `key=(value, ...)`.
#[derive(Debug, Default)]
pub struct Arg {
    pub key: String,
    pub values: Vec<String>,
}

impl Case {
    /// The values of the argument with this key.
    pub fn values(&self, key: &str) -> Option<&[String]> {
        self.args.iter().find(|a| a.key == key).map(|a| &a.values[..])
    }

    /// The numbers given as arguments without a value.
    pub fn numbers(&self) -> Result<Vec<u64>, String> {
        self.args.iter().filter(|a| a.values.is_empty()).map(|a| number(&a.key)).collect()
    }

    /// Fails when there is an argument with a value that is not named in `known`.
    pub fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.args.iter().find(|a| !a.values.is_empty() && !known.contains(&a.key.as_str())) {
            Some(arg) => Err(format!("option {} of {} is not known", arg.key, self.command)),
            None => Ok(()),
        }
    }
}

pub fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not a number"))
}

pub fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

/// Takes a script apart.
pub fn parse(text: &str) -> Result<Vec<Case>, String> {
    let lines: Vec<&str> = text.lines().collect();
    let (mut cases, mut at) = (Vec::new(), 0);
    while at < lines.len() {
        let line = lines[at].trim();
        if line.is_empty() || line.starts_with('#') {
            at += 1;
            continue;
        }
        let mut case = Case { line: at + 1, ..Case::default() };
        let mut command = line.to_owned();
        while command.ends_with('\\') {
            at += 1;
            command.pop();
            command.push_str(lines.get(at).ok_or("command goes on after the end")?.trim());
        }
        (case.command, case.args) = parse_command(&command)?;
        at += 1;
        while at < lines.len() && lines[at] != "----" {
            case.input.push_str(lines[at]);
            case.input.push('\n');
            at += 1;
        }
        if at == lines.len() {
            return Err(format!("line {}: no ---- after the command", case.line));
        }
        at += 1;
        // Output with empty lines in it stands between two doubled separators.
        let doubled = lines.get(at) == Some(&"----");
        at += usize::from(doubled);
        while at < lines.len() {
            let end = if doubled { lines[at] == "----" } else { lines[at].trim().is_empty() };
            if end {
                at += if doubled { 2 } else { 1 };
                break;
            }
            case.expected.push_str(lines[at]);
            case.expected.push('\n');
            at += 1;
        }
        cases.push(case);
    }
    Ok(cases)
}

fn parse_command(line: &str) -> Result<(String, Vec<Arg>), String> {
    let mut words: Vec<String> = vec![String::new()];
    let mut depth = 0;
    for c in line.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            c if c.is_whitespace() && depth == 0 => {
                words.push(String::new());
                continue;
            }
            _ => {}
        }
        words.last_mut().expect("never empty").push(c);
    }
    if depth != 0 {
        return Err(format!("unbalanced parentheses: {line}"));
    }
    let mut words = words.into_iter().filter(|w| !w.is_empty());
    let command = words.next().ok_or("empty command")?;
    let args = words.map(|word| match word.split_once('=') {
        None => Arg { key: word, values: Vec::new() },
        Some((key, value)) => {
            let inner = value.strip_prefix('(').and_then(|v| v.strip_suffix(')')).unwrap_or(value);
            let values = inner.split(',').map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect();
            Arg { key: key.to_owned(), values }
        }
    });
    Ok((command, args.collect()))
}
