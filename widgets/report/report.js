// Draws the charts of a report from the data beside them, and keeps their ink in step with the page's colours.
const config = {
  responsive: true,
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d"],
  toImageButtonOptions: { scale: 2 },
};
const charts = [...document.querySelectorAll(".chart")];
const ink = () => getComputedStyle(document.body).color;

const drawn = charts.map((chart) => {
  const figure = JSON.parse(chart.querySelector("script").textContent);
  figure.layout = { ...figure.layout, font: { ...figure.layout.font, color: ink() } };
  return Plotly.newPlot(chart, figure.data, figure.layout, config);
});

async function recolour() {
  await Promise.all(drawn);
  for (const chart of charts) Plotly.relayout(chart, { "font.color": ink() });
}
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", recolour);

document.getElementById("scheme").addEventListener("click", () => {
  const root = document.documentElement;
  const scheme = root.style.colorScheme || (dark.matches ? "dark" : "light");
  root.style.colorScheme = scheme === "dark" ? "light" : "dark";
  recolour();
});

document.getElementById("code").addEventListener("click", (event) => {
  const shown = document.body.classList.toggle("show-code");
  event.target.textContent = shown ? "Hide code" : "Show code";
});

// For whoever checks a report: true once every chart stands.
Promise.all(drawn).then(() => { document.body.dataset.ready = "true"; });
