// SPDX-License-Identifier: MIT
// A Linux driver for sampler.py: reading /dev/sampler gives the samples that wait, 32 bits each.
//
// It has a bug unless it is loaded with careful=1: it believes what COUNT says.
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

enum { COUNT = 0, DATA = 4, SAMPLES = 1024 };

static unsigned int base = 0xd0000000;
static bool careful;
module_param(base, uint, 0444);
module_param(careful, bool, 0444);

static void __iomem *regs;
static u32 *samples;
static DEFINE_MUTEX(lock);

static ssize_t sampler_read(struct file *file, char __user *data, size_t size, loff_t *at)
{
	u32 count, i;
	ssize_t result;

	mutex_lock(&lock);
	count = readl(regs + COUNT);
	if (careful && count > SAMPLES) {
		mutex_unlock(&lock);
		return -EIO;
	}
	for (i = 0; i < count; i++)
		samples[i] = readl(regs + DATA);
	result = min_t(size_t, size, count * sizeof(u32));
	if (copy_to_user(data, samples, result))
		result = -EFAULT;
	mutex_unlock(&lock);
	return result;
}

static const struct file_operations operations = { .owner = THIS_MODULE, .read = sampler_read };
static struct miscdevice misc = { .minor = MISC_DYNAMIC_MINOR, .name = "sampler", .fops = &operations };

static int __init sampler_init(void)
{
	int result = -ENOMEM;

	regs = ioremap(base, 0x1000);
	samples = vmalloc(SAMPLES * sizeof(u32));
	if (regs && samples)
		result = misc_register(&misc);
	if (result) {
		vfree(samples);
		iounmap(regs);
	}
	return result;
}

static void __exit sampler_exit(void)
{
	misc_deregister(&misc);
	vfree(samples);
	iounmap(regs);
}

module_init(sampler_init);
module_exit(sampler_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Driver for the sampler of iobus's examples");
