"""The page's style sheet; system fonts, nothing is fetched."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c2128; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #d5d9df; padding-bottom: .2rem; overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .4rem; }
p { max-width: 48rem; margin: .4rem 0; }
.verdict { border: 1px solid #d5d9df; border-radius: .5rem; padding: .8rem 1rem; background: #f7f8fa; }
.headline { font-size: 1.12rem; font-weight: 600; max-width: none; }
.verdict ul, .warnings, .plain { padding-left: 0; list-style: none; margin: .5rem 0; }
.verdict li, .warnings li, .plain li { padding-left: 1.6rem; text-indent: -1.6rem; margin: .25rem 0; overflow-wrap: anywhere; }
.lost li::before { content: "✗"; color: #a83232; font-weight: 700; display: inline-block; width: 1.6rem; text-indent: 0; }
.won li::before { content: "✓"; color: #2c7a4b; font-weight: 700; display: inline-block; width: 1.6rem; text-indent: 0; }
.missing li::before { content: "?"; color: #6b7280; font-weight: 700; display: inline-block; width: 1.6rem; text-indent: 0; }
.warnings li::before { content: "!"; color: #c8641b; font-weight: 700; display: inline-block; width: 1.6rem; text-indent: 0; }
.plain li::before { content: "–"; display: inline-block; width: 1.6rem; text-indent: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.facts th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; font-weight: 600; white-space: nowrap; }
.facts td { padding: .2rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.figures { font-size: .92rem; margin: .6rem 0; }
.figures th, .figures td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #e6e9ed; text-align: right; }
.figures td { white-space: nowrap; }
.figures th:first-child { text-align: left; font-weight: 500; }
.figures thead th { font-weight: 600; }
.charts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }
.beside { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; }
.beside > div { max-width: 100%; }
figure { margin: .4rem 0; max-width: 100%; }
figure svg { width: 29.4rem; max-width: 100%; height: auto; display: block; }
.mixture img { width: 36rem; max-width: 100%; height: auto; display: block; }
.sounds { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }
audio { max-width: 100%; display: block; }
figcaption { font-size: .92rem; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: .1rem 0 0; max-width: 48rem; }
code { font: .88rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: #f1f3f5; padding: .3rem .5rem; border-radius: .3rem;
  display: block; overflow-wrap: anywhere; white-space: pre-wrap; }
"""
