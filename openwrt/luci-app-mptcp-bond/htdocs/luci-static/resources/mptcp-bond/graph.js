'use strict';
'require baseclass';
'require dom';
'require mptcp-bond.text as text';

/* The rates of the last ten minutes, stacked by uplink: received above, sent below. */

/* Seconds that are shown. */
const WINDOW = 600;

/* Units of the drawing, which is stretched to the room there is. */
const WIDTH = 1000;
const HEIGHT = 100;

/* Okabe and Ito's, which colour-blind people can tell apart, as far as they do on light and dark grounds. */
const colors = [
	'#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#8c6bb1', '#888888'
];

function svg(name, attributes, children) {
	const node = document.createElementNS('http://www.w3.org/2000/svg', name);

	for (const key in attributes)
		node.setAttribute(key, attributes[key]);

	node.append(...(children ?? []));

	return node;
}

/* The least of 1, 2, 5, 10, 20, ... that is not below a value. */
function roundUp(value) {
	const unit = 10 ** Math.floor(Math.log10(value));

	return [ 1, 2, 5, 10 ].find(step => step * unit >= value) * unit;
}

/* One direction of all uplinks. */
class Panel {
	constructor(direction, title) {
		this.direction = direction;
		this.title = title;
		this.areas = svg('g');
		this.drawing = svg('svg', {
			'viewBox': '0 0 %d %d'.format(WIDTH, HEIGHT),
			'preserveAspectRatio': 'none',
			'role': 'img'
		}, [ this.areas ]);

		for (const share of [ 0, 0.5 ])
			this.drawing.append(svg('line', {
				'x1': 0, 'x2': WIDTH, 'y1': share * HEIGHT, 'y2': share * HEIGHT, 'class': 'mptcp-bond-grid'
			}));

		this.now = E('strong', {}, [ '–' ]);
		this.top = E('span', {}, [ '' ]);
		this.middle = E('span', {}, [ '' ]);
		this.node = E('div', { 'class': 'mptcp-bond-panel mptcp-bond-panel-%s'.format(direction) }, [
			E('div', { 'class': 'mptcp-bond-panel-title' }, [ title, ' ', this.now ]),
			E('div', { 'class': 'mptcp-bond-plot' }, [
				this.drawing,
				E('div', { 'class': 'mptcp-bond-scale' }, [ this.top, this.middle ])
			])
		]);
	}

	draw(samples, names, end) {
		const key = this.direction;
		const rate = (sample, name) => sample.rates[name]?.[key] ?? 0;
		const total = sample => names.reduce((sum, name) => sum + rate(sample, name), 0);
		const scale = roundUp(Math.max(1e5, ...samples.map(total)));
		const x = sample => (WIDTH * (1 + (sample.time - end) / WINDOW)).toFixed(1);
		const y = value => (HEIGHT * (1 - value / scale)).toFixed(2);
		const floor = samples.map(() => 0);

		dom.content(this.areas, names.map((name, index) => {
			const lower = samples.map((sample, at) => '%s,%s'.format(x(sample), y(floor[at])));
			const upper = samples.map((sample, at) => {
				floor[at] += rate(sample, name);
				return '%s,%s'.format(x(sample), y(floor[at]));
			});

			return svg('polygon', {
				'points': upper.concat(lower.reverse()).join(' '),
				'fill': colors[index % colors.length]
			}, [ svg('title', {}, [ name ]) ]);
		}));

		const now = text.rate(samples.length ? total(samples[samples.length - 1]) : 0);

		dom.content(this.now, [ now ]);
		dom.content(this.top, [ text.rate(scale) ]);
		dom.content(this.middle, [ text.rate(scale / 2) ]);
		this.drawing.setAttribute('aria-label', _('%s of the last ten minutes, now %s').format(this.title, now));
	}
}

class Graph {
	constructor() {
		this.samples = [];
		this.panels = [ new Panel('down', _('Download')), new Panel('up', _('Upload')) ];
		this.node = E('div', { 'class': 'mptcp-bond-graph' }, [
			...this.panels.map(panel => panel.node),
			E('div', { 'class': 'mptcp-bond-axis' }, [ 10, 8, 6, 4, 2 ].map(
				minutes => E('span', {}, [ _('%d min ago').format(minutes) ])).concat(E('span', {}, [ _('now') ])))
		]);
	}

	/* Whether this status does not continue what is known, so that the history is needed. */
	lacks(status) {
		const last = this.samples[this.samples.length - 1];
		const passed = status.time_unix_seconds - last?.time;

		return !(passed >= 0 && passed <= 15) || status.uptime_seconds < this.uptime;
	}

	/* Begins anew with a history, which ends as its answer was given. */
	begin(history) {
		const uplinks = Object.entries(history.uplinks ?? {});
		const length = Math.max(0, ...uplinks.map(([ , told ]) => told.rx_bps.length));
		const at = (series, index) => series[series.length - length + index] ?? 0;

		this.samples = Array.from({ length }, (_unused, index) => ({
			time: history.time_unix_seconds - (length - 1 - index),
			rates: Object.fromEntries(uplinks.map(([ name, told ]) =>
				[ name, { down: at(told.rx_bps, index), up: at(told.tx_bps, index) } ]))
		}));
	}

	add(status) {
		const time = status.time_unix_seconds;
		const uplinks = status.uplinks ?? [];

		this.uptime = status.uptime_seconds;
		this.samples = this.samples.filter(sample => sample.time < time && sample.time >= time - WINDOW);
		this.samples.push({
			time,
			rates: Object.fromEntries(uplinks.map(uplink => [ uplink.name, { down: uplink.rx_bps, up: uplink.tx_bps } ]))
		});
		this.panels.forEach(panel => panel.draw(this.samples, uplinks.map(uplink => uplink.name), time));
	}
}

return baseclass.extend({
	Graph,

	/* Of an uplink, by its place in the configuration. */
	color(index) {
		return colors[index % colors.length];
	}
});
