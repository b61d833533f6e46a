'use strict';
'require baseclass';
'require dom';

/* Dialogues, notifications and fields of the double. */

class Textfield {
	constructor(value, options) {
		this.options = options;
		this.input = E('input', { 'type': 'text', 'placeholder': options.placeholder, 'blur': () => this.judge() });
		this.input.value = value;
		this.node = E('div', {}, [ this.input ]);
	}

	judge() {
		const judgement = this.options.validate(this.input.value);

		this.input.dataset.tooltip = (judgement === true) ? '' : judgement;
	}

	render() {
		return this.node;
	}

	getValue() {
		return this.input.value;
	}

	setValue(value) {
		this.input.value = value;
	}
}

return baseclass.extend({
	Textfield,

	createHandlerFn(context, handler, ...values) {
		return event => {
			const target = event.currentTarget;
			const method = (typeof(handler) == 'string') ? context[handler] : handler;

			target.disabled = true;
			target.blur();
			Promise.resolve(method.call(context, ...values, event)).finally(() => { target.disabled = false; });
		};
	},

	showModal(title, children) {
		this.hideModal();
		document.body.append(E('div', { 'class': 'modal' }, [ E('h4', {}, [ title ]), ...children ]));
	},

	hideModal() {
		document.querySelector('.modal')?.remove();
	},

	addNotification(title, children, ...classes) {
		const node = E('div', { 'class': 'alert-message %s'.format(classes.join(' ')) });

		dom.append(node, children);
		document.body.prepend(node);
	}
});
