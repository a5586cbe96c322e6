// SPDX-License-Identifier: MIT
// A Linux driver for copier.py: what is written to /dev/copier is copied by the device, and then read from it.
#include <linux/acpi.h>
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/uaccess.h>

enum { SOURCE = 0x00, TARGET = 0x08, LENGTH = 0x10, CTRL = 0x14, STATUS = 0x18 };
enum { START = 1, ENABLE = 2 };           // CTRL
enum { DONE = 1, ERROR = 2, BUSY = 4 };   // STATUS

static struct device *dev;
static void __iomem *regs;
static char *from, *to;                   // one page each
static size_t length;                     // bytes in `to`
static u32 status;                        // of the latest copy
static DECLARE_COMPLETION(copied);
static DEFINE_MUTEX(lock);

static irqreturn_t copier_irq(int number, void *data)
{
	u32 now = readl(regs + STATUS) & (DONE | ERROR);

	if (!now)
		return IRQ_NONE;
	writel(now, regs + STATUS);
	status = now;
	complete(&copied);
	return IRQ_HANDLED;
}

static int copy(size_t count)
{
	dma_addr_t source = dma_map_single(dev, from, count, DMA_TO_DEVICE);
	dma_addr_t target = dma_map_single(dev, to, count, DMA_FROM_DEVICE);
	int result = -ETIMEDOUT;

	reinit_completion(&copied);
	writeq(source, regs + SOURCE);
	writeq(target, regs + TARGET);
	writel(count, regs + LENGTH);
	writel(START | ENABLE, regs + CTRL);
	if (wait_for_completion_timeout(&copied, HZ))
		result = status & ERROR ? -EIO : 0;
	dma_unmap_single(dev, target, count, DMA_FROM_DEVICE);
	dma_unmap_single(dev, source, count, DMA_TO_DEVICE);
	return result;
}

static ssize_t copier_write(struct file *file, const char __user *data, size_t count, loff_t *at)
{
	int result;

	count = min_t(size_t, count, PAGE_SIZE);
	mutex_lock(&lock);
	result = copy_from_user(from, data, count) ? -EFAULT : copy(count);
	length = result ? 0 : count;
	mutex_unlock(&lock);
	return result ?: count;
}

static ssize_t copier_read(struct file *file, char __user *data, size_t count, loff_t *at)
{
	return simple_read_from_buffer(data, count, at, to, length);
}

static const struct file_operations operations = {
	.owner = THIS_MODULE, .read = copier_read, .write = copier_write,
};
static struct miscdevice misc = { .minor = MISC_DYNAMIC_MINOR, .name = "copier", .fops = &operations };

static int copier_probe(struct platform_device *pdev)
{
	int irq = platform_get_irq(pdev, 0);
	int result;

	dev = &pdev->dev;
	if (irq < 0)
		return irq;
	regs = devm_platform_ioremap_resource(pdev, 0);
	if (IS_ERR(regs))
		return PTR_ERR(regs);
	from = (char *)devm_get_free_pages(dev, GFP_KERNEL, 0);
	to = (char *)devm_get_free_pages(dev, GFP_KERNEL, 0);
	if (!from || !to)
		return -ENOMEM;
	result = dma_set_mask(dev, DMA_BIT_MASK(64));
	if (!result)
		result = devm_request_irq(dev, irq, copier_irq, 0, "copier", NULL);
	return result ?: misc_register(&misc);
}

static int copier_remove(struct platform_device *pdev)
{
	misc_deregister(&misc);
	writel(0, regs + CTRL);
	return 0;
}

static const struct acpi_device_id ids[] = { { "IOBS0001" }, {} };
MODULE_DEVICE_TABLE(acpi, ids);

static struct platform_driver copier = {
	.probe = copier_probe,
	.remove = copier_remove,
	.driver = { .name = "copier", .acpi_match_table = ids },
};
module_platform_driver(copier);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Driver for the copier of iobus's examples");
